"""First floor of the house: models that reason in latent states. Needs torch and transformers only."""
