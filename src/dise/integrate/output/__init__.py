"""Steps, states at any time and events of a solve."""
