"""`load_pretrained`: clips of any rate, layout and length to unit vectors, and what cannot be embedded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly

import streamsplit
from streamsplit.audio.synth import LABELS, render_scene
from streamsplit.audio.windows import cut_windows
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import AudioError, CheckpointError, ConfigError, EncoderError
from streamsplit.facade.pretrained import PretrainedEncoder, card_markdown, load_pretrained, save_pretrained
from streamsplit.weights.pretrained import DEFAULT, PACKAGED, packaged_names

SETTINGS = EncoderSettings(width=0.25, seed=1)
CARD = {
    "name": "small", "licence": "CC BY 4.0", "data": "scenes | synthetic", "hours": 0.125, "command": "streamsplit x",
    "commit": "0" * 7, "metrics": {"digits": 0.81234, "esc10": {"probe": 0.9, "precision_at_10": 0.6}},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> PretrainedEncoder:
    path = tmp_path_factory.mktemp("published") / "small.safetensors"
    saved = save_pretrained(make_encoder(SETTINGS), SETTINGS, CARD, path)
    loaded = load_pretrained(path)
    assert loaded.revision == saved.revision and loaded.card == saved.card == CARD
    return loaded


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return render_scene(LABELS[0], 3.3, np.random.default_rng(0))


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_a_clip_is_the_normalised_mean_of_its_windows_unit_embeddings(model: PretrainedEncoder, clip) -> None:
    with torch.no_grad():
        each = [model.encoder(torch.from_numpy(window.features)[None])[0].numpy() for window in cut_windows(clip)]
    mean = np.mean([z / np.linalg.norm(z) for z in each], axis=0)
    z = model.embed_clip(clip, 16_000)
    assert z.shape == (128,) and z.dtype == np.float32 and np.linalg.norm(z) == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(z, mean / np.linalg.norm(mean), atol=1e-5)


def test_a_long_clip_is_taken_in_pieces_without_a_seam(model: PretrainedEncoder, clip, monkeypatch) -> None:
    whole = model.embed_clip(clip, 16_000)
    monkeypatch.setattr("streamsplit.facade.pretrained._PIECE_S", 1)
    np.testing.assert_allclose(model.embed_clip(clip, 16_000), whole, atol=1e-6)


def test_channels_are_mixed_and_integers_scaled(model: PretrainedEncoder, clip) -> None:
    z = model.embed_clip(clip, 16_000)
    np.testing.assert_allclose(model.embed_clip(np.stack([clip, clip]), 16_000), z, atol=1e-5)
    np.testing.assert_allclose(model.embed_clip(np.stack([2 * clip, 0 * clip]), 16_000), z, atol=1e-5)
    np.testing.assert_allclose(model.embed_clip(torch.from_numpy(clip), 16_000), z, atol=1e-6)
    for kind, full_scale in ((np.int16, 2**15), (np.int32, 2**31)):
        samples = np.clip(np.round(clip.astype(np.float64) * full_scale), -full_scale, full_scale - 1).astype(kind)
        assert cosine(model.embed_clip(samples, 16_000), z) > 0.999


def test_other_sample_rates_give_nearly_the_same_embedding(model: PretrainedEncoder, clip) -> None:
    z = model.embed_clip(clip, 16_000)
    assert cosine(model.embed_clip(resample_poly(clip, 3, 1), 48_000), z) > 0.98
    assert cosine(model.embed_clip(clip, 48_000), z) < 0.98  # what it would be without resampling


def test_a_clip_shorter_than_a_window_is_filled_up(model: PretrainedEncoder, clip) -> None:
    short = model.embed_clip(clip[:4_000], 16_000)
    filled = model.embed_clip(np.pad(clip[:4_000], (0, 12_240 - 4_000 + 4_000)), 16_000)
    assert np.linalg.norm(short) == pytest.approx(1.0, abs=1e-6) and cosine(short, filled) > 0.9999


@pytest.mark.parametrize(
    ("audio", "words"),
    [
        (np.zeros(16_000), "silence only"),
        (np.zeros(16_000, np.int16), "silence only"),
        (np.zeros(0), "no samples"),
        (np.zeros((1, 0)), "no samples"),
        (np.full(16_000, np.nan), "NaN"),
        (np.array([0.1, np.inf]), "infinite"),
        (np.ones(16_000, np.uint8), "uint8"),
        (np.ones((16_000, 2)), "transpose"),
        (np.ones((2, 2, 16_000)), "shape"),
    ],
)
def test_what_holds_no_sound_is_one_clear_error(model: PretrainedEncoder, audio, words: str) -> None:
    with pytest.raises(AudioError, match=words):
        model.embed_clip(audio, 16_000)


@pytest.mark.parametrize("rate", [0, -16_000, float("nan"), 1e9])
def test_impossible_rates_are_refused(model: PretrainedEncoder, clip, rate: float) -> None:
    with pytest.raises(AudioError, match="sample rate"):
        model.embed_clip(clip, rate)


def test_windows_are_embedded_alike_one_by_one_and_in_any_batch(model: PretrainedEncoder, clip) -> None:
    windows = np.stack([window.features for window in cut_windows(clip)])
    many = model.embed_windows(np.tile(windows, (20, 1, 1)))
    np.testing.assert_allclose(many, np.tile(model.embed_windows(windows), (20, 1)), atol=1e-5)
    np.testing.assert_allclose(model.embed_windows(windows[0]), many[0], atol=1e-5)
    assert model.embed_windows(windows[:0]).shape == (0, 128)
    for bad, words in ((windows[None], "shape"), (windows[:, :7], "shape"), (windows * np.nan, "NaN")):
        with pytest.raises(EncoderError, match=words):
            model.embed_windows(bad)


def test_a_device_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_pretrained(make_encoder(SETTINGS), SETTINGS, CARD, path)
    with pytest.raises(ConfigError, match="gpu0"):
        load_pretrained(path, device="gpu0")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no GPU"):
            load_pretrained(path, device="cuda")


def test_a_failed_write_leaves_the_older_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_pretrained(make_encoder(SETTINGS), SETTINGS, CARD, path)
    before = path.read_bytes()
    with pytest.raises(ConfigError):
        save_pretrained(make_encoder(SETTINGS), SETTINGS, {}, path)
    assert path.read_bytes() == before and [item.name for item in tmp_path.iterdir()] == ["a.safetensors"]
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_pretrained(make_encoder(SETTINGS), SETTINGS, CARD, path / "below" / "b.safetensors")


def test_the_model_card_says_everything_and_its_tables_hold() -> None:
    page = card_markdown(CARD | {"about": "A small one."})
    assert page.startswith("# small\n\nA small one.\n") and "```sh\nstreamsplit x\n```" in page
    for row in ("| licence | CC BY 4.0 |", "| data | scenes \\| synthetic |", "| hours | 0.125 |"):
        assert row in page.splitlines()
    for row in ("| digits | 0.8123 |", "| esc10, probe | 0.9 |", "| esc10, precision_at_10 | 0.6 |"):
        assert row in page.splitlines()


def test_the_packaged_encoder_loads_by_default_and_its_page_is_its_cards() -> None:
    assert DEFAULT in packaged_names()
    model = streamsplit.load_pretrained()
    assert model.encoder.embedding_dim == 128 and (PACKAGED / f"{DEFAULT}.safetensors").stat().st_size < 4e6
    z = model.embed_clip(render_scene(LABELS[0], 2.0, np.random.default_rng(0)), 16_000)
    assert z.shape == (128,) and np.linalg.norm(z) == pytest.approx(1.0, abs=1e-6)
    assert (PACKAGED / "README.md").read_text(encoding="utf-8") == card_markdown(model.card)


def test_samples_in_other_units_and_rates_that_are_no_number_are_refused(model, clip) -> None:
    with pytest.raises(AudioError, match=r"got floats up to .*, expected -1\.\.1; divide 16-bit samples by 32768"):
        model.embed_clip(clip / np.abs(clip).max() * 32_767, 16_000)
    for rate in (None, "44100", True):
        with pytest.raises(AudioError, match="expected a number of Hz"):
            model.embed_clip(clip, rate)
    with pytest.raises(EncoderError, match=r"got features of shape \(2, 64, 100\), expected \[n, 128, t\]"):
        model.embed_windows(np.zeros((2, 64, 100), np.float32))


def test_a_card_says_how_its_own_encoder_is_loaded() -> None:
    assert 'streamsplit.load_pretrained("small.safetensors")' in card_markdown(CARD)
    assert "streamsplit.load_pretrained()" in card_markdown({**CARD, "name": DEFAULT})
