"""Encoder weights on the move: revisions and deltas (pure)."""
