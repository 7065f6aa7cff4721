"""Realistic windows from the soundscape generator, and encoders that were started on half of them."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsplit.audio import synth  # noqa: E402
from streamsplit.audio.logmel import log_mel  # noqa: E402
from streamsplit.encoders.base import SplitEncoder  # noqa: E402
from streamsplit.encoders.factory import EncoderSettings, make_encoder  # noqa: E402
from streamsplit.encoders.projection import fit_exits, fit_projection  # noqa: E402
from streamsplit.wire.media import Resolution  # noqa: E402

WINDOW_SAMPLES = 99 * 160 + 400


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clips() -> np.ndarray:
    """Audio of one window each [n, samples], several of every kind of sound."""
    scenes = [synth.render_scene(label, 8.0, np.random.default_rng(i)) for i, label in enumerate(synth.LABELS)]
    starts = range(0, len(scenes[0]) - WINDOW_SAMPLES, 8_000)
    return np.stack([scene[start : start + WINDOW_SAMPLES] for scene in scenes for start in starts])


@pytest.fixture(scope="session")
def windows(clips: np.ndarray) -> np.ndarray:
    """[n, 128, 100] log-mel."""
    return np.stack([log_mel(clip) for clip in clips])


@pytest.fixture(scope="session")
def reduced_windows(clips: np.ndarray) -> np.ndarray:
    """[n, 64, 50] log-mel of the same audio."""
    return np.stack([log_mel(clip, resolution=Resolution.REDUCED)[:, :50] for clip in clips])


@pytest.fixture(scope="session", params=["mobilenet", "resnet18"])
def encoder(request: pytest.FixtureRequest, windows: np.ndarray) -> SplitEncoder:
    """Each encoder, projection and exits fitted on every second window; tests must not change it."""
    made = make_encoder(EncoderSettings(name=request.param))
    fit_projection(made, windows[::2])
    fit_exits(made, windows[::2])
    return made.requires_grad_(False)


@pytest.fixture(scope="session")
def mobilenet(windows: np.ndarray) -> SplitEncoder:
    """MobileNet, projection and exits fitted; tests must not change it."""
    made = make_encoder()
    fit_projection(made, windows[::2])
    fit_exits(made, windows[::2])
    return made.requires_grad_(False)
