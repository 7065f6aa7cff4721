"""Learning on the server, from many devices (pure; torch)."""
