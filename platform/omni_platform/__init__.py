"""Ground floor of the house: rows, files, clusters. Knows no model."""
