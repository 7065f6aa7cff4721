"""Where to cut: cuts, cost tables, observations, policies (pure)."""
