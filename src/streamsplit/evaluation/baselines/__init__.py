"""The methods that are compared: one file each, all from the same start, order and budget."""
