"""Training of Kosmos-G: data, the three stages, the engine, data construction and evaluation."""
