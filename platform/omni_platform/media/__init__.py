"""Clips: the one decoder of the house, and the film that the project makes itself."""
