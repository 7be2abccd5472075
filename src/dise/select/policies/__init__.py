"""Rules that assign integrators to samples."""
