"""Data sets made ready: found, checked, split by source recording, described by a card, heard as streams."""
