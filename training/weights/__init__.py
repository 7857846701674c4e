"""The weights that a run begins with, those of other projects renamed to ours, and where weights came from."""
