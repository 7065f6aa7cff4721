"""Bandwidth traces and link shaping."""
