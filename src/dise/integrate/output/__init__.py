"""What is read from a solve: steps, states at any time, events."""
