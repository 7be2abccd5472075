"""Initial value problems on the solver's own layout."""
