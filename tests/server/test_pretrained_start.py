"""A refiner that begins with published weights: their projection and embedding space stay, and learning goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsplit.audio.synth import LABELS, render_scene
from streamsplit.audio.windows import cut_windows
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.encoders.projection import fit_projection
from streamsplit.server.refiner_loop import _Loop, current_revision
from streamsplit.server.settings import ServerSettings
from streamsplit.weights.pretrained import pack_pretrained, read_pretrained
from streamsplit.weights.revision import encoder_weights

CARD = {
    "name": "small", "licence": "none", "data": "none", "hours": 0.0, "command": "none", "commit": "0" * 7,
    "metrics": {},
}  # fmt: skip
TRAINING = {"warm_start_windows": 16, "batch_size": 8, "publish_steps": 1, "publish_interval_s": 0.0}


class Nobody:
    """The server's end of the pipe: what is sent to it is kept, and it says nothing."""

    def __init__(self) -> None:
        self.sent: list = []

    def send(self, message) -> None:
        self.sent.append(message)

    def poll(self, wait_s: float) -> bool:
        return False


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    rng = np.random.default_rng(0)
    audio = np.concatenate([render_scene(label, 4.0, rng) for label in LABELS[:6]])
    return np.stack([window.features for window in cut_windows(audio)])


@pytest.fixture
def published(tmp_path: Path, windows: np.ndarray) -> Path:
    settings = EncoderSettings(width=0.25)
    encoder = make_encoder(settings)
    fit_projection(encoder, windows, 0)
    path = tmp_path / "small.safetensors"
    path.write_bytes(pack_pretrained(encoder_weights(encoder), settings, CARD)[0])
    return path


def loop_of(folder: Path, published: Path | None) -> _Loop:
    settings = ServerSettings.from_mapping({"server": {"data_dir": str(folder)}, "training": TRAINING})
    encoder = settings.encoder.replace(width=0.25)
    if published is not None:
        encoder = encoder.starting_from(str(published))
    return _Loop(Nobody(), settings.replace(encoder=encoder))  # type: ignore[arg-type]


def feed(loop: _Loop, windows: np.ndarray) -> None:
    for device in ("a", "b"):
        for index, features in enumerate(windows):
            loop._refiner.add(device, index, 500.0 * index, features=features)


def test_a_published_start_is_never_fitted_anew_and_keeps_its_space(
    tmp_path: Path, published: Path, windows: np.ndarray
) -> None:
    loop = loop_of(tmp_path / "server", published)
    refiner = loop._refiner
    assert refiner.revision == read_pretrained(published).revision
    feed(loop, windows)
    assert not refiner.warm_start() and refiner.ready()
    before = encoder_weights(refiner.encoder)
    refiner.step()
    made = refiner.publish()
    assert made.base == read_pretrained(published).revision and not made.breaks_space and refiner.space == 1
    assert refiner.lineage.latest.space == 1 and made.revision != made.base
    moved = max(float(np.abs(array - before[name]).max()) for name, array in encoder_weights(refiner.encoder).items())
    assert moved > 0


def test_a_start_from_the_seed_is_fitted_as_before(tmp_path: Path, windows: np.ndarray) -> None:
    loop = loop_of(tmp_path / "server", None)
    feed(loop, windows)
    assert loop._refiner.space == 0 and loop._refiner.warm_start() and loop._refiner.space == 1


def test_a_server_that_goes_on_keeps_what_its_folder_holds(tmp_path: Path, published: Path) -> None:
    folder = tmp_path / "server"
    first = loop_of(folder, published)
    first._save()
    assert current_revision(folder) == (read_pretrained(published).revision, 1)
    first._files.write(first._refiner.revision, b"", b"", None, "")
    again = loop_of(folder, None)
    assert again._resumed and again._refiner.warm_started and again._refiner.space == 1
