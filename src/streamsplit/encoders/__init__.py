"""Split-capable encoders and what crosses a cut (pure; torch)."""
