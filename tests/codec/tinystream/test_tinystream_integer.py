"""The encoder in whole numbers: its front against floating point, its convolutions against loops, its codes against
those of the network that it was made from."""

from __future__ import annotations

import copy
import functools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.audio.synth import render_scene
from streamsplit.codec.tinystream import integer_front
from streamsplit.codec.tinystream.frames import IntegerEncoderStream
from streamsplit.codec.tinystream.front import LogMelFront
from streamsplit.codec.tinystream.integer import IntegerEncoder, Kind, Operation, convolved
from streamsplit.codec.tinystream.integer_file import pack_integer, read_integer, unpack_integer
from streamsplit.codec.tinystream.integer_front import FFT, LEVEL_STEP, IntegerFront
from streamsplit.codec.tinystream.integerise import activation_peaks, integerise
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.errors import AudioError, CheckpointError, CutError

FRONTS = {
    "waveform": {"C": 4, "D": 16, "strides": (4, 5), "num_quantizers": 3, "codebook_size": 32, "codebook_dim": 6},
    "logmel": {"D": 20, "strides": (80, 2), "bands": 24, "num_quantizers": 3, "codebook_size": 32, "codebook_dim": 6,
               "front": "logmel"},
}  # fmt: skip


def sound(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    return render_scene("conversation", seconds, np.random.default_rng(seed)).clip(-1, 1)


@functools.cache
def pair(front: str) -> tuple[TinyStream, IntegerEncoder]:
    model = TinyStream(**FRONTS[front], seed=1).train()
    audio = torch.from_numpy(sound())[None, None]
    with torch.no_grad():
        for value in model.encoder.parameters():
            value.add_(0.02 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0)))
        for _ in range(3):
            model(audio)
    model.eval()
    return model, integerise(model, activation_peaks(model, audio))


def test_the_transform_is_numpys_up_to_rounding() -> None:
    x = np.random.default_rng(0).integers(-(1 << 22), 1 << 22, (5, FFT))
    real, imaginary = integer_front.spectrum(x)
    expected = np.fft.rfft(x)
    scale = np.abs(expected).max()
    assert np.abs(real - expected.real).max() < 2e-4 * scale
    assert np.abs(imaginary - expected.imag).max() < 2e-4 * scale


@settings(max_examples=200, deadline=None, derandomize=True)
@given(x=st.integers(1, (1 << 53) - 1))
def test_the_logarithm_is_within_a_step_and_a_half(x: int) -> None:
    found = int(integer_front.log2(np.array([x]))[0])
    assert abs(found - 1024 * np.log2(x)) < 1.5


@pytest.mark.parametrize("level", [1.0, 0.1, 0.003])
def test_the_front_is_the_float_fronts_up_to_rounding(level: float) -> None:
    samples = np.rint(sound() * level * 32_767).astype(np.int16)[:16_000]
    front = IntegerFront(16_000, 160, 64)
    levels, _ = front.step(samples, np.zeros(front.context, np.int16))
    expected = LogMelFront(16_000, 160, 64)(torch.from_numpy(samples / np.float32(32_768))[None, None])[0].T.numpy()
    errors = np.abs(levels * LEVEL_STEP - expected)
    assert errors.mean() < 2e-3  # 0.08 dB
    assert errors.max() < 0.1


def test_the_loudest_and_the_quietest_samples_stay_within_range() -> None:
    front = IntegerFront(16_000, 160, 64)
    time = np.arange(3_200)
    square = np.where(time // 8 % 2, 32_767, -32_768).astype(np.int16)
    levels, _ = front.step(square, np.zeros(front.context, np.int16))
    assert 15_000 < levels.max() < 20_000
    silence, _ = front.step(np.zeros(1_600, np.int16), np.zeros(front.context, np.int16))
    assert np.abs(silence + 16_384).max() <= 4


@pytest.mark.parametrize(
    ("kind", "relu", "stride"), [(Kind.DENSE, True, 1), (Kind.DENSE, False, 2), (Kind.DEPTHWISE, True, 2)]
)
def test_a_convolution_is_its_definition(kind: Kind, relu: bool, stride: int) -> None:
    rng = np.random.default_rng(0)
    shape = (5, 4, 3) if kind is Kind.DENSE else (3, 4)
    operation = Operation(
        kind, rng.integers(-127, 128, shape).astype(np.int8), rng.integers(-9_999, 9_999, shape[0]).astype(np.int32),
        rng.integers(1 << 14, 1 << 15, shape[0]).astype(np.int32), rng.integers(20, 26, shape[0]).astype(np.int32),
        stride, relu,
    )  # fmt: skip
    x = rng.integers(-32_768, 32_768, (6, 3)).astype(np.int16)
    context = rng.integers(0, 100, (4 - stride, 3)).astype(np.int16)
    y, kept = convolved(operation, x, context)
    joined = [[int(v) for v in row] for row in context]
    joined += [[max(int(v), 0) if relu else int(v) for v in row] for row in x]
    for t in range(6 // stride):
        for o in range(shape[0]):
            total = int(operation.bias[o])
            for k in range(4):
                row = joined[t * stride + k]
                if kind is Kind.DENSE:
                    total += sum(int(operation.weight[o, k, i]) * row[i] for i in range(3))
                else:
                    total += int(operation.weight[o, k]) * row[o]
            shift = int(operation.shift[o])
            expected = (total * int(operation.multiplier[o]) + (1 << (shift - 1))) // (1 << shift)
            assert y[t, o] == max(-32_768, min(32_767, expected))
    assert kept.tolist() == joined[len(joined) - len(context) :]


@pytest.mark.parametrize("front", FRONTS)
def test_its_latents_are_the_networks_up_to_rounding(front: str) -> None:
    model, encoder = pair(front)
    samples = np.rint(sound(1.0, 3) * 32_767).astype(np.int16)
    samples = samples[: len(samples) // encoder.hop * encoder.hop]
    latent, _ = encoder.latent(samples, encoder.initial())
    with torch.no_grad():
        expected = model.encoder(torch.from_numpy(samples / np.float32(32_768))[None, None])[0].T.numpy()
    errors = latent * encoder.latent_step - expected
    assert errors.std() < 0.03 * expected.std()
    indices = encoder.search(latent)
    coded = model.quantizer.decode(torch.from_numpy(indices)[None])[0].T.numpy()
    best = model.quantizer.decode(model.quantizer.encode(torch.from_numpy(expected.T[None].copy())))[0].T.numpy()
    assert np.square(coded - expected).mean() < 1.1 * np.square(best - expected).mean() + 1e-3 * expected.var()


@pytest.mark.parametrize("front", FRONTS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(sizes=st.lists(st.integers(0, 900), max_size=8))
def test_any_chunking_gives_the_same_codes_exactly(front: str, sizes: list[int]) -> None:
    encoder = pair(front)[1]
    audio = sound(0.3, 5)
    whole = IntegerEncoderStream(encoder)
    expected = np.concatenate([whole.push(audio), whole.finish()], 1)
    stream, parts, at = IntegerEncoderStream(encoder), [], 0
    for size in [*sizes, len(audio)]:
        parts.append(stream.push(audio[at : at + size]))
        at += size
    parts.append(stream.finish())
    assert np.array_equal(np.concatenate(parts, 1), expected)
    assert np.array_equal(IntegerEncoderStream(encoder, 1).push(audio), expected[:1, : len(audio) // encoder.hop])


@pytest.mark.parametrize("samples", [np.zeros(33, np.int16), np.zeros(160, np.float32), np.zeros((160, 1), np.int16)])
def test_anything_but_whole_frames_of_16_bits_is_refused(samples: np.ndarray) -> None:
    encoder = pair("logmel")[1]
    with pytest.raises(AudioError, match="expected int16 in frames of 160"):
        encoder.step(samples, encoder.initial())


def test_what_has_no_integer_form_is_refused() -> None:
    model, _ = pair("waveform")
    with pytest.raises(CutError, match=r"got 2 peaks of activations, expected \d+"):
        integerise(model, [1.0, 1.0])
    loud, peaks = copy.deepcopy(model), activation_peaks(model, torch.from_numpy(sound(0.1))[None, None])
    loud.quantizer.codebooks *= 1e5
    with pytest.raises(CutError, match="squares do not fit 32 bits"):
        integerise(loud, peaks)
    with pytest.raises(CutError, match=r"expected 1\.\.3"):
        IntegerEncoderStream(pair("waveform")[1], 4)
    wide = TinyStream(C=1, D=8, strides=(2,) * 8, num_quantizers=1, codebook_size=2)
    torch.nn.init.ones_(wide.encoder.layers[-1].conv.weight)
    with pytest.raises(CutError, match=r"whose sums reach .*, expected below 2\^31"):
        integerise(wide, activation_peaks(wide, torch.from_numpy(sound(0.1))[None, None]))


@pytest.mark.parametrize("front", FRONTS)
def test_a_file_of_its_own_gives_the_same_codes(front: str) -> None:
    encoder = pair(front)[1]
    data = pack_integer(encoder)
    assert pack_integer(encoder) == data
    again = unpack_integer(data)
    assert again.model_id == encoder.model_id
    audio = sound(0.5, 8)
    assert np.array_equal(IntegerEncoderStream(again).push(audio), IntegerEncoderStream(encoder).push(audio))


def test_damaged_files_are_one_clear_error_whatever_the_damage() -> None:
    data = pack_integer(pair("logmel")[1])
    header = int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(data)
        for place in rng.integers(0, header + 8, 3):  # the header: everything that says sizes
            broken[place] = rng.integers(256)
        try:
            unpack_integer(bytes(broken))
        except CheckpointError:
            refused += 1
    assert refused > 250
    for cut in (b"", data[:100], data[:-1]):
        with pytest.raises(CheckpointError, match="is not an integer codec"):
            unpack_integer(cut)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(CheckpointError, match="nosuch: cannot be read"):
        read_integer("nosuch")
