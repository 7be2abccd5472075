"""Rounds of the loop as graphs of torch.compile: everything that knows torch's compiler."""
