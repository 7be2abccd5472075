"""Tasks of the simulation-based inference benchmark: priors, simulators and reference posteriors, one task a file.

Source: Lueckmann, Boelts, Greenberg, Gonçalves, Macke, Benchmarking Simulation-Based Inference, AISTATS 2021, appendix
T. The reference posteriors are those of its package sbibm 1.1.0 (MIT licence).
"""
