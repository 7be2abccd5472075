"""Parts of `late_decisions.py`."""
