"""Answers over HTTP from Ray Serve."""
