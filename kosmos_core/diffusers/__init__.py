"""Kosmos-G in diffusers. Imported on demand: the nodes never need it."""
