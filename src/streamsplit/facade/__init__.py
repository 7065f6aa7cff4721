"""The names of the research code's README, thin over the same core as the live runtime."""
