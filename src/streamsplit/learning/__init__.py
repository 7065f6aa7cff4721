"""Learning on the device, one window at a time (pure)."""
