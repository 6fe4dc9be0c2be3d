"""Models that reason in latent states. Needs torch and transformers only."""
