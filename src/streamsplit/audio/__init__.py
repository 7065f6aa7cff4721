"""Signal path: features, resampling, augmentation, synthetic sound (pure; numpy)."""
