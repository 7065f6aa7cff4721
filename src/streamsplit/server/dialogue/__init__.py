"""Spoken dialogue at the server: questions as they come, who answers them, and the answers' way back."""
