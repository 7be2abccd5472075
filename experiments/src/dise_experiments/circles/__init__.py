"""The paper's third task: a continuous normalizing flow on two circles in the plane."""
