"""Initial value problems, and integrations of them as coroutines, in the solver's own layout."""
