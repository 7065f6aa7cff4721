"""The codec as a whole: exact sizes, its clock, streaming equal to offline, fewer quantizers, lost frames."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.codec.tinystream.settings import SIZES, TinyStreamSettings
from streamsplit.codec.tinystream.streams import DecoderStream, EncoderStream
from streamsplit.errors import AudioError, ConfigError, CutError

COUNTS = {
    "ultra_tiny": (19_084, 32_768, 53_905, 1_000.0),
    "tiny": (73_624, 262_144, 214_113, 2_250.0),
    "small": (163_620, 786_432, 480_625, 2_500.0),
}
SMALL = TinyStreamSettings(C=2, D=16, strides=(4, 5), num_quantizers=3, codebook_size=16, codebook_dim=6)


def numbers(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@functools.cache
def codec(decoder: str = "mirror") -> TinyStream:
    made = TinyStream.from_settings(SMALL.replace(decoder=decoder, decoder_width=16, decoder_blocks=1), seed=3)
    made.train()
    made.quantizer.generator.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("bias"):  # as in a trained one: silence is not zero everywhere
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for seed in range(3):
            made(sound(4_000, seed)[None, None])
    return made.eval()


def sound(samples: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy((0.1 * np.cumsum(rng.standard_normal(samples)) / 10).astype(np.float32)).clamp(-1, 1)


@pytest.mark.parametrize("name", COUNTS)
def test_the_named_sizes_are_what_their_architecture_says(name: str) -> None:
    made = TinyStream.from_settings(SIZES[name])
    *counts, bitrate = COUNTS[name]
    assert [numbers(made.encoder), made.quantizer.codebooks.numel(), numbers(made.decoder)] == counts
    assert made.clock.bitrate_bps == bitrate
    assert (made.clock.hop, made.clock.frame_rate_hz, made.clock.latency_ms) == (256, 62.5, 16.0)


def test_the_seeds_arguments_make_the_seeds_codec() -> None:
    made = TinyStream(C=8, D=128, strides=[4, 4, 4, 4], num_quantizers=4, codebook_size=512, sample_rate=16000)
    assert made.settings == SIZES["tiny"]
    with torch.no_grad():
        indices = made.encode(torch.randn(1, 1, 16_000))
        quantized, again, _ = made.eval().quantizer(made.encoder(torch.randn(1, 1, 256)))
    assert indices.shape == (1, 4, 63)  # the seed says 62.5 Hz; the last frame is filled up
    assert quantized.shape == (1, 128, 1)
    assert again.shape == (1, 4, 1)


def test_narrow_codebooks_are_a_fraction() -> None:
    made = TinyStream(codebook_dim=16)
    assert numbers(made.encoder) == 30_504
    assert made.quantizer.codebooks.numel() == 32_768


@settings(max_examples=25, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(0, 700), max_size=12), count=st.sampled_from([None, 1, 2]))
def test_any_chunking_gives_the_codes_of_the_whole(sizes: list[int], count: int | None) -> None:
    model, audio = codec(), sound(2_345, 9).numpy()
    stream = EncoderStream(model, count)
    parts, at = [], 0
    for size in [*sizes, len(audio)]:
        parts.append(stream.push(audio[at : at + size]))
        at += size
    parts.append(stream.finish())
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(audio)[None, None], count)[0].numpy()
    assert np.array_equal(np.concatenate(parts, 1), expected)


@pytest.mark.parametrize("decoder", ["mirror", "spectral"])
def test_a_decoded_stream_is_the_decoded_whole_late_by_the_lookahead(decoder: str) -> None:
    model = codec(decoder)
    with torch.no_grad():
        indices = model.encode(sound(1_000)[None, None])
        expected = model.decode(indices)[0, 0].numpy()
    stream = DecoderStream(model)
    parts = [stream.push(indices[0, :, at : at + 7].numpy()) for at in range(0, 50, 7)]
    late = model.settings.lookahead * model.settings.hop
    np.testing.assert_allclose(np.concatenate(parts)[late:], expected[: 1_000 - late], atol=1e-5)
    assert late == (20 if decoder == "spectral" else 0)


def test_decoded_audio_is_aligned_and_as_long_as_its_frames() -> None:
    model = codec("spectral")
    coded = model(sound(1_010)[None, None])
    assert coded.audio.shape == (1, 1, 1_010)
    with torch.no_grad():
        assert model.decode(model.encode(sound(1_010)[None, None])).shape == (1, 1, 1_020)


def test_more_quantizers_come_closer_to_the_latent() -> None:
    model, audio = codec(), sound(4_000, 1)[None, None]
    with torch.no_grad():
        latent = model.encoder(audio)
        errors = [
            float((model.quantizer.decode(model.encode(audio, count)) - latent).square().mean()) for count in (1, 2, 3)
        ]
    assert errors[0] > errors[1] > errors[2]
    assert model.settings.clock_with(1).bitrate_bps == model.clock.bitrate_bps / 3


@pytest.mark.parametrize("decoder", ["mirror", "spectral"])
def test_lost_frames_are_held_and_then_fade_to_silence(decoder: str) -> None:
    model = codec(decoder)
    with torch.no_grad():
        indices = model.encode(sound(1_000)[None, None])[0].numpy()
        silence = model.decoder(model.silent_latent().expand(1, -1, 40))[0, 0, -20:].numpy()
    stream = DecoderStream(model)
    stream.push(indices)
    lost = stream.conceal(60)
    assert lost.shape == (60 * 20,)
    assert np.isfinite(lost).all()
    np.testing.assert_allclose(lost[-20:], silence, atol=1e-3)
    assert not np.allclose(lost[:20], silence, atol=1e-3)
    assert stream.push(indices[:, :3]).shape == (60,)


def test_nothing_gives_nothing() -> None:
    model = codec()
    assert EncoderStream(model).push(np.zeros(0, np.float32)).shape == (3, 0)
    assert EncoderStream(model).finish().shape == (3, 0)
    assert DecoderStream(model).push(np.zeros((3, 0), int)).shape == (0,)
    assert DecoderStream(model).conceal(0).shape == (0,)


def test_the_id_names_encoder_and_codebooks_but_not_the_decoder() -> None:
    first, second = TinyStream.from_settings(SMALL), TinyStream.from_settings(SMALL)
    assert first.model_id() == second.model_id()
    with torch.no_grad():
        next(iter(second.decoder.parameters())).add_(1.0)
    assert first.model_id() == second.model_id()
    second.quantizer.codebooks += 1.0
    assert first.model_id() != second.model_id()


@pytest.mark.parametrize(
    ("audio", "message"),
    [(torch.zeros(1, 2, 100), r"shape \(1, 2, 100\), expected mono"), (torch.zeros(100), "expected mono"),
     (torch.full((1, 1, 40), float("nan")), "not finite")],
)  # fmt: skip
def test_audio_of_another_shape_or_not_finite_is_refused(audio: torch.Tensor, message: str) -> None:
    with pytest.raises(AudioError, match=message):
        codec().encode(audio)


def test_a_stream_refuses_what_is_no_mono_sound_and_goes_on() -> None:
    stream = EncoderStream(codec())
    for wrong in (np.zeros((2, 4)), np.array([np.inf])):
        with pytest.raises(AudioError, match="finite mono samples"):
            stream.push(wrong)
    assert stream.push(np.zeros(40, np.float32)).shape == (3, 2)


def test_the_spectral_front_streams_like_the_other_and_is_small() -> None:
    model = TinyStream.from_settings(SIZES["tiny_mel"]).eval()
    assert numbers(model.encoder) + model.quantizer.codebooks.numel() == 67_316
    assert model.clock.hop == 320
    assert model.clock.bitrate_bps == 2_250.0
    model.quantizer.codebooks.copy_(torch.randn(5, 512, 16, generator=torch.Generator().manual_seed(0)))
    audio, stream = sound(16_000, 4).numpy(), EncoderStream(model)
    parts = [stream.push(audio[at : at + 777]) for at in range(0, 16_000, 777)]
    with torch.no_grad():
        expected = model.encode(torch.from_numpy(audio)[None, None])[0].numpy()
    assert np.array_equal(np.concatenate([*parts, stream.finish()], 1), expected)


def test_more_quantizers_than_there_are_is_refused() -> None:
    with pytest.raises(CutError, match=r"got 4 quantizers, expected 1\.\.3"):
        EncoderStream(codec(), 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"strides": ()}, "'strides'"), ({"strides": (4, 40)}, "'strides'"), ({"codebook_size": 500}, "power of two"),
     ({"front": "logmel"}, "spectrum's hop of 16..512 samples first"),
     ({"decoder_spectra": 7}, "expected a divisor of 256 samples"),
     ({"C": 0}, "'C': got 0"), ({"decoder": "big"}, "allowed mirror, spectral")],
)  # fmt: skip
def test_sizes_out_of_range_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TinyStreamSettings(**changes)


def test_an_unknown_argument_names_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'codebook_dim'"):
        TinyStream(codebook_dims=4)
