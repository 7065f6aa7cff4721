"""Small sound files for tests of data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile


def write_tone(path: Path, seconds: float = 1.2, *, rate_hz: int = 8000, hz: float = 440.0, level: float = 0.3) -> Path:
    """A tone; `level` 0 is silence."""
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    subtype = "FLOAT" if path.suffix == ".wav" else None
    soundfile.write(path, (level * np.sin(2 * np.pi * hz * t)).astype(np.float32), rate_hz, subtype=subtype)
    return path
