"""Reports of runs: pictures, tables, and one HTML page."""
