"""Reports: one HTML page about any output folder."""
