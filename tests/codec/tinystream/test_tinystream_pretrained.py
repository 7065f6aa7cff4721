"""The codec that comes with the package: its budgets, and that it hears and speaks."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from streamsplit.audio.files import read_audio
from streamsplit.audio.synth import render_scene
from streamsplit.codec.tinystream.frames import IntegerEncoderStream
from streamsplit.codec.tinystream.integer_file import SUFFIX, pack_integer
from streamsplit.codec.tinystream.losses import MelDistance
from streamsplit.codec.tinystream.settings import SIZES
from streamsplit.evaluation.datasets import data_folder
from streamsplit.export.c_model import sizes
from streamsplit.weights.codec_file import PACKAGED, PublishedCodec, read_codec


@functools.cache
def codec() -> PublishedCodec:
    return read_codec("tiny_mel")


def decoded(audio: np.ndarray, quantizers: int | None = None) -> np.ndarray:
    stream = IntegerEncoderStream(codec().integer_encoder(), quantizers)
    indices = np.concatenate([stream.push(audio), stream.finish()], 1)
    with torch.no_grad():
        return codec().model.decode(torch.from_numpy(indices)[None])[0, 0].numpy()[: len(audio)]


def distance(audio: np.ndarray, reference: np.ndarray) -> float:
    return MelDistance()(torch.from_numpy(audio)[None, None], torch.from_numpy(reference)[None, None]).item()


def test_it_fits_its_budgets() -> None:
    assert (PACKAGED / "tiny_mel.safetensors").stat().st_size < 2_000_000
    encoder = codec().integer_encoder()
    assert encoder.stored_bytes <= 70 * 1024
    assert sizes(encoder).ram_bytes(encoder) <= 64 * 1024
    wanted = {name: value for name, value in SIZES["tiny_mel"].as_dict().items() if not name.startswith("decoder")}
    own = codec().model.settings.as_dict()
    assert {name: own[name] for name in wanted} == wanted
    assert codec().model.clock.bitrate_bps == 2_250.0


def test_the_file_for_devices_without_torch_is_the_same_encoder() -> None:
    assert pack_integer(codec().integer_encoder()) == (PACKAGED / f"tiny_mel{SUFFIX}").read_bytes()


def test_synthetic_sound_comes_back_closer_with_more_quantizers() -> None:
    audio = render_scene("conversation", 3.0, np.random.default_rng(7)).clip(-1, 1)
    heard = [distance(decoded(audio, count), audio) for count in (1, 5)]
    assert heard[1] < heard[0] < distance(np.zeros_like(audio), audio)
    assert heard[1] < 4.0


def test_a_speaker_that_it_was_not_trained_on_is_close() -> None:
    folder = data_folder()
    paths = sorted((folder / "speech").glob("8*.flac"))[:3] if folder else []
    if not paths:
        pytest.skip("no data folder with speech/ (STREAMSPLIT_DATA)")
    for path in paths:
        audio = read_audio(Path(path))[:64_000]
        assert distance(decoded(audio), audio) < 3.0
