"""Where scripts import torchdiffeq's `SOLVERS` from; see `dise.torchdiffeq`."""
