"""The evaluation as a page for a browser: one HTML file that needs nothing beside it."""
