"""Kosmos-G in diffusers, and Stable Diffusion 1.5 itself. Imported on demand: the encoder does not need it."""
