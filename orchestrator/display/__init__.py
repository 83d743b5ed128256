"""How a run is read back and shown: on a terminal, as CSV, as one HTML page."""
