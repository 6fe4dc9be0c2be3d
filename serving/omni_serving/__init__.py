"""Top floor of the house: answers over HTTP from Ray Serve."""
