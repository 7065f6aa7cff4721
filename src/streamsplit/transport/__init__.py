"""What both ends put under a session: one connection that carries its frames, over WebSocket or QUIC."""
