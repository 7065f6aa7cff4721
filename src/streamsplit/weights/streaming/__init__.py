"""Transformer weights on demand: manifest, chunks, cache, and the model that runs on what has arrived (pure)."""
