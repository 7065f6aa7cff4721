"""What a low-rate codec is compared with: Opus, and Codec2 where Debian's tools are installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from streamsplit.codec.opus import decode_segment, encode_segment, packets_bytes
from streamsplit.codec.tinystream.bitstream import HEADER_BYTES, MODEL_ID_BYTES
from streamsplit.codec.tinystream.coded_file import pack_file
from streamsplit.codec.tinystream.frames import Indices, IntegerEncoderStream
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.codec.tinystream.streams import DecoderStream
from streamsplit.errors import AudioError
from streamsplit.weights.codec_file import PublishedCodec

Floats = NDArray[np.float32]

OPUS_BPS = (6_000, 9_000, 12_000)
CODEC2_MODES = (1_200, 2_400, 3_200)
_CODEC2_HZ = 8_000
_CODEC2_SHORT_BPS = 2_400  # modes from this one on have frames of 20 ms, those below of 40


class Heard(NamedTuple):
    """What a codec made of a sound."""

    audio: Floats  # [n], aligned with the sound that went in, and as long
    coded_bytes: int  # of the codes themselves; headers that a file or a packet has besides are not in it


class Codec(NamedTuple):
    """Something that codes sound at 16 kHz, and how."""

    name: str
    about: str
    code: Callable[[Floats, bool], Heard]  # samples [n]; whether they are speech


def tinystream(
    codec: PublishedCodec, quantizers: int | None = None, *, form: str = "integer", lost: float = 0.0
) -> Codec:
    """A published codec with the first `quantizers` only, its encoder in whole numbers or in another of FORMS.

    With `lost`, that share of the frames, each by itself, does not arrive and is concealed. Raises MissingExtraError
    for 'onnx-int8' without the extra 'onnx'.
    """
    model, encode = codec.model, encoder_of(codec, form)
    count = quantizers or model.settings.num_quantizers
    rate = model.settings.clock_with(count).bitrate_bps
    random = np.random.default_rng(round(1000 * lost))

    @torch.no_grad()
    def code(audio: Floats, speech: bool) -> Heard:
        indices = encode(audio)[:count]
        data = pack_file(indices, model.settings.index_bits, model.model_id()[:MODEL_ID_BYTES])
        if lost:
            gone = np.asarray(random.random(indices.shape[1]) < lost)
            decoded = _concealed(model, indices, gone)
        else:
            decoded = model.decode(torch.from_numpy(indices)[None])[0, 0].numpy()
        return Heard(decoded[: len(audio)], len(data) - HEADER_BYTES)

    name = f"{codec.card['name']} {rate / 1000:g}k" + (f" {form}" if form != "integer" else "")
    about = f"{count} quantizers, encoder {form}"
    if lost:
        name, about = f"{name}, {lost:.0%} lost", f"{about}, {lost:.0%} of the frames lost, one by one"
    return Codec(name, about, code)


def encoder_of(codec: PublishedCodec, form: str) -> Callable[[Floats], Indices]:
    """Samples [n] -> indices of all quantizers: form is float, integer, onnx or onnx-int8.

    Raises MissingExtraError for ONNX without the extra 'onnx'.
    """
    model = codec.model
    if form == "float":
        return lambda audio: model.encode(torch.from_numpy(audio)[None, None])[0].numpy()
    if form in ("onnx", "onnx-int8"):
        from streamsplit.export.codec_onnx import OnnxStream, export_streaming

        session = OnnxStream(export_streaming(model, int8=form == "onnx-int8"))

        def frames(audio: Floats) -> Indices:
            session.reset()
            whole = np.pad(audio, (0, -len(audio) % model.settings.hop)).reshape(-1, model.settings.hop)
            return np.stack([session.push(frame) for frame in whole], 1)

        return frames
    encoder = codec.integer_encoder()

    def integers(audio: Floats) -> Indices:
        stream = IntegerEncoderStream(encoder)
        return np.concatenate([stream.push(audio), stream.finish()], 1)

    return integers


def _concealed(model: TinyStream, indices: Indices, gone: NDArray[np.bool_]) -> Floats:
    """The sound of indices of which the frames in `gone` did not come."""
    stream, parts = DecoderStream(model), []
    for run in np.split(np.arange(len(gone)), np.flatnonzero(np.diff(gone)) + 1):  # frames in a row that came, or not
        parts.append(stream.conceal(len(run)) if gone[run[0]] else stream.push(indices[:, run]))
    sound: Floats = np.concatenate([*parts, stream.finish()])[model.settings.lookahead * model.settings.hop :]
    return sound


def opus(bitrate_bps: int) -> Codec:
    """libopus at 16 kHz, packets of 20 ms: for speech made for voice, otherwise for audio."""

    def code(audio: Floats, speech: bool) -> Heard:
        payload = encode_segment(audio, bitrate_bps, application="voip" if speech else "audio")
        return Heard(decode_segment(payload, len(audio)), packets_bytes(payload, len(audio)))

    return Codec(f"Opus {bitrate_bps / 1000:g}k", "packets of 20 ms, variable rate", code)


def codec2(bitrate_bps: int) -> Codec | None:
    """Codec2 by Debian's c2enc and c2dec at 8 kHz; None where they are not installed."""
    if shutil.which("c2enc") is None or shutil.which("c2dec") is None:
        return None
    frame = _CODEC2_HZ // 1000 * (40 if bitrate_bps < _CODEC2_SHORT_BPS else 20)  # samples

    def code(audio: Floats, speech: bool) -> Heard:
        from soxr import resample

        narrow = np.rint(np.clip(resample(audio, 16_000, _CODEC2_HZ), -1, 1) * 32_767).astype(np.dtype("<i2"))
        with tempfile.TemporaryDirectory() as folder:
            raw, coded, decoded = (str(Path(folder) / name) for name in ("in.raw", "x.bit", "out.raw"))
            padding = np.zeros(_CODEC2_HZ // 10, "<i2")  # the last frame, and the codec's own delay
            Path(raw).write_bytes(np.concatenate([narrow, padding]).tobytes())
            for command in (["c2enc", str(bitrate_bps), raw, coded], ["c2dec", str(bitrate_bps), coded, decoded]):
                done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
                if done.returncode:
                    raise AudioError(f"{command[0]} failed ({done.stderr.strip()[-200:]})")
            size = Path(coded).stat().st_size  # of a .bit file: frames alone, no header
            samples = np.float32(1 / 32_768) * np.frombuffer(Path(decoded).read_bytes(), np.int16).astype(np.float32)
        delay = best_delay(narrow.astype(np.float32), samples, _CODEC2_HZ // 10)
        back = np.asarray(resample(samples[delay:], _CODEC2_HZ, 16_000), np.float32)
        whole = np.zeros(len(audio), np.float32)
        whole[: min(len(back), len(audio))] = back[: len(audio)]
        frames = (len(narrow) + len(padding)) // frame  # of which those are counted that begin within the sound
        return Heard(whole, round(size * min(1.0, -(-len(narrow) // frame) / frames)))

    return Codec(f"Codec2 {bitrate_bps}", "8 kHz, constant rate", code)


def best_delay(reference: Floats, late: Floats, most: int) -> int:
    """Samples (0..`most`) by which the short-time level of `late` [n + ...] lags behind that of `reference` [n]."""
    levels = [np.convolve(np.abs(x), np.ones(80) / 80, "same") for x in (reference, late)]
    length = min(len(levels[0]), len(levels[1]) - most)
    scores = [float(np.dot(levels[0][:length], levels[1][lag : lag + length])) for lag in range(0, most + 1, 4)]
    return 4 * int(np.argmax(scores))
