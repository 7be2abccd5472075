"""Which steps are tried, and which are accepted."""
