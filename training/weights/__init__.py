"""The weights that a run begins with, those of other projects under our names, and where weights came from."""
