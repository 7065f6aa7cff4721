"""Codec training: it learns, goes on exactly where it stopped, and stops when the latent says nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from streamsplit.audio.synth import render_scene
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.errors import AudioError, CheckpointError, CollapseError
from streamsplit.refinement.codec_training import CodecTraining, CodecTrainingSettings, Sounds

SIZES = {
    "D": 16, "strides": (160, 2), "front": "logmel", "bands": 16, "codebook_dim": 6, "num_quantizers": 2,
    "codebook_size": 16, "decoder": "spectral", "decoder_width": 24, "decoder_blocks": 1,
}  # fmt: skip
SETTINGS = CodecTrainingSettings(
    steps=40, batch=4, crop_s=0.3, unquantized_steps=4, warm_up_steps=2, learning_rate=3e-3, adversarial_from=6,
    discriminator_channels=4,
)  # fmt: skip


def sounds(seed: int = 0, rate: int = 16_000) -> Sounds:
    rng = np.random.default_rng(seed)
    scenes = [render_scene(label, 2.0, rng) for label in ("conversation", "rain", "music")]
    return Sounds([(32_767 * np.clip(scene, -1, 1)).astype(np.int16) for scene in scenes], rate)


def training(settings: CodecTrainingSettings = SETTINGS, **sizes: object) -> CodecTraining:
    return CodecTraining(TinyStream(**{**SIZES, **sizes}), sounds(), sounds(1), settings)


def test_the_mel_distance_of_unheard_sound_falls() -> None:
    run = training(SETTINGS.replace(adversarial_from=None))
    before = run.health()
    steps = [run.step() for _ in range(40)]
    after = run.health()
    assert np.isnan(before.mel_db)
    assert before.mel_db_unquantized > 12
    assert after.mel_db_unquantized < 0.7 * before.mel_db_unquantized
    assert after.mel_db < 0.8 * before.mel_db_unquantized
    assert 1.0 < after.effective_rank <= 6
    assert np.isnan(before.perplexity).all()
    with torch.no_grad():
        codes = run.model.encode(run._held_out).numpy()
    for book, found in enumerate(after.perplexity):
        share = np.bincount(codes[:, book].ravel(), minlength=16) / codes[:, book].size
        assert found == pytest.approx(np.exp(-sum(p * np.log(p) for p in share if p)), rel=1e-4)
    assert np.isnan(steps[0].commitment)
    assert steps[-1].commitment > 0


def test_a_run_that_was_stopped_goes_on_exactly() -> None:
    whole = training()
    for _ in range(8):
        whole.step()
    kept = whole.state()
    after = [whole.step() for _ in range(3)]
    resumed = training()
    resumed.load(kept)
    assert [resumed.step() for _ in range(3)] == after
    assert all(
        torch.equal(one, other)
        for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True)
    )
    assert after[-1].discriminator > 0
    assert after[-1].adversarial == after[-1].adversarial  # took part: no nan


def test_a_latent_that_says_next_to_nothing_stops_it() -> None:
    run = training(SETTINGS.replace(least_rank=5.9, rank_from=1))
    run.step()
    with pytest.raises(CollapseError, match=r"got an effective rank of \d\.\d of 6 at step 1, expected at least 5\.9"):
        run.health()


@pytest.mark.parametrize(
    ("changes", "sizes", "message"),
    [({"batch": 5}, {}, "training setting batch 4, expected 5"), ({}, {"D": 18}, "codec setting D 16, expected 18")],
)
def test_a_checkpoint_of_other_settings_is_refused(
    changes: dict[str, object], sizes: dict[str, object], message: str
) -> None:
    kept = training().state()
    other = training(SETTINGS.replace(**changes), **sizes)
    before = [value.clone() for value in other.model.state_dict().values()]
    with pytest.raises(CheckpointError, match=message):
        other.load(kept)
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.state_dict().values(), strict=True))


def test_how_often_health_is_looked_at_may_change() -> None:
    kept = training().state()
    training(SETTINGS.replace(health_steps=7, least_rank=2.0)).load(kept)


@pytest.mark.parametrize("damage", [lambda data: data[:1000], lambda data: b"\0" * 64, lambda data: b""])
def test_a_damaged_checkpoint_is_refused(damage: object) -> None:
    run = training()
    with pytest.raises(CheckpointError, match="cannot be read"):
        run.load(damage(run.state()))  # type: ignore[operator]


def test_crops_are_within_their_levels_and_short_recordings_end_in_silence() -> None:
    loud = Sounds([np.full(1_000, 16_384, np.int16)], 16_000)
    crops = loud.crops(50, 2_000, -20.0, np.random.default_rng(0))
    assert crops.shape == (50, 1, 2_000)
    assert not crops[..., 1_000:].any()
    levels = 20 * np.log10(crops[:, 0, 0] / 0.5)
    assert -20.0 <= levels.min() < -15.0
    assert -5.0 < levels.max() <= 0.0


def test_longer_recordings_are_drawn_more_often() -> None:
    both = Sounds([np.full(1_000, 8_192, np.int16), np.full(9_000, 16_384, np.int16)], 16_000)
    crops = both.crops(400, 100, 0.0, np.random.default_rng(0))
    assert 0.85 < (crops[:, 0, 0] > 0.4).mean() < 0.95


def test_nothing_to_hear_or_another_rate_is_refused() -> None:
    with pytest.raises(AudioError, match="got no recordings"):
        Sounds([np.zeros(0, np.int16)], 16_000)
    with pytest.raises(AudioError, match="got sound at 8000 Hz, expected 16000"):
        CodecTraining(TinyStream(**SIZES), sounds(), sounds(1, 8_000), SETTINGS)


def test_a_checkpoint_without_its_discriminators_changes_nothing() -> None:
    from safetensors.torch import load, save

    run = training()
    data = run.state()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    kept = {name: value for name, value in load(data).items() if not name.startswith("discriminators/")}
    other = training()
    before = [value.clone() for value in other.model.state_dict().values()]
    with pytest.raises(CheckpointError, match="cannot be read"):
        other.load(save(kept, header["__metadata__"]))
    assert all(torch.equal(a, b) for a, b in zip(before, other.model.state_dict().values(), strict=True))
