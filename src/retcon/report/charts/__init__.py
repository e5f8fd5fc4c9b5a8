"""Charts as Vega-Lite specifications: plain data, drawn by the page and as PNG and SVG."""
