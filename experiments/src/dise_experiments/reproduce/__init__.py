"""The paper's grid: every task, model, regularizer, seed and selector, in processes of this machine or on Ray."""
