"""The model around a block: finding block and head, running candidates, states and logits."""
