"""The model around a block: finding it, running it with each candidate."""
