"""Audio coding of what crosses at block 0 (pure)."""
