"""One call that makes a trained model dynamic."""
