"""Turn values into HTML and SVG for the page."""
