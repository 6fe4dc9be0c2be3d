"""Clips: how they are decoded, and the synthetic data set that the project renders."""
