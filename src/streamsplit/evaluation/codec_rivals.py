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
from streamsplit.codec.tinystream.frames import IntegerEncoderStream
from streamsplit.errors import AudioError
from streamsplit.weights.codec_file import PublishedCodec

Floats = NDArray[np.float32]

OPUS_BPS = (6_000, 9_000, 12_000)
CODEC2_MODES = (1_200, 2_400, 3_200)
_CODEC2_HZ = 8_000


class Heard(NamedTuple):
    """What a codec made of a sound."""

    audio: Floats  # [n], aligned with the sound that went in, and as long
    coded_bytes: int  # of the codes themselves; headers that a file or a packet has besides are not in it


class Codec(NamedTuple):
    """Something that codes sound at 16 kHz, and how."""

    name: str
    about: str
    code: Callable[[Floats, bool], Heard]  # samples [n]; whether they are speech


def tinystream(codec: PublishedCodec, quantizers: int | None = None) -> Codec:
    """A published codec, encoded in whole numbers as a microcontroller does, with the first `quantizers` only."""
    encoder, model = codec.integer_encoder(), codec.model
    count = quantizers or model.settings.num_quantizers
    rate = model.settings.clock_with(count).bitrate_bps

    @torch.no_grad()
    def code(audio: Floats, speech: bool) -> Heard:
        stream = IntegerEncoderStream(encoder, quantizers)
        indices = np.concatenate([stream.push(audio), stream.finish()], 1)
        data = pack_file(indices, model.settings.index_bits, model.model_id()[:MODEL_ID_BYTES])
        decoded = model.decode(torch.from_numpy(indices)[None])[0, 0].numpy()
        return Heard(decoded[: len(audio)], len(data) - HEADER_BYTES)

    return Codec(f"{codec.card['name']} {rate / 1000:g}k", f"{count} quantizers, encoder in whole numbers", code)


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

    def code(audio: Floats, speech: bool) -> Heard:
        from soxr import resample

        narrow = np.rint(np.clip(resample(audio, 16_000, _CODEC2_HZ), -1, 1) * 32_767).astype(np.dtype("<i2"))
        with tempfile.TemporaryDirectory() as folder:
            raw, coded, decoded = (str(Path(folder) / name) for name in ("in.raw", "x.c2", "out.raw"))
            padding = np.zeros(_CODEC2_HZ // 10, "<i2")  # the last frame, and the codec's own delay
            Path(raw).write_bytes(np.concatenate([narrow, padding]).tobytes())
            for command in (["c2enc", str(bitrate_bps), raw, coded], ["c2dec", str(bitrate_bps), coded, decoded]):
                done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
                if done.returncode:
                    raise AudioError(f"{command[0]} failed ({done.stderr.strip()[-200:]})")
            samples = np.float32(1 / 32_768) * np.frombuffer(Path(decoded).read_bytes(), np.int16).astype(np.float32)
        delay = best_delay(narrow.astype(np.float32), samples, _CODEC2_HZ // 10)
        back = np.asarray(resample(samples[delay:], _CODEC2_HZ, 16_000), np.float32)
        whole = np.zeros(len(audio), np.float32)
        whole[: min(len(back), len(audio))] = back[: len(audio)]
        return Heard(whole, round(bitrate_bps * len(narrow) / _CODEC2_HZ / 8))

    return Codec(f"Codec2 {bitrate_bps}", "8 kHz, constant rate", code)


def best_delay(reference: Floats, late: Floats, most: int) -> int:
    """Samples (0..`most`) by which the short-time level of `late` [n + ...] lags behind that of `reference` [n]."""
    levels = [np.convolve(np.abs(x), np.ones(80) / 80, "same") for x in (reference, late)]
    length = min(len(levels[0]), len(levels[1]) - most)
    scores = [float(np.dot(levels[0][:length], levels[1][lag : lag + length])) for lag in range(0, most + 1, 4)]
    return 4 * int(np.argmax(scores))
