"""Deaths in intensive care, predicted from irregular measurements by a latent ODE."""
