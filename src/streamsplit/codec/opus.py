"""Opus at a cut: each segment is coded by itself, time-aligned with its input, so it can be decoded alone.

Layout: lookahead in samples u16 little-endian; then packets of 20 ms, each behind its length: one byte, or for 252
bytes and more two as in RFC 6716 (first 252..255, plus four times the second).
"""

from __future__ import annotations

import struct
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from streamsplit.errors import AudioError, CutError

Floats = NDArray[np.float32]

RATE_HZ = 16_000
PACKET_SAMPLES = 320  # 20 ms
LONGEST_S = 120  # of one segment: bounds what a hostile payload can make the decoder do
_COMPLEXITY = 5  # half the time of the library's default 10
_HEADER = struct.Struct("<H")
_LONGEST_LOOKAHEAD = 960
LARGEST_PACKET = 1_275  # of one Opus frame (RFC 6716, 3.2.1)


def encode_segment(audio: Floats, bitrate_bps: int = 24_000, *, application: str = "audio") -> bytes:
    """Samples [n] at 16 kHz as Opus, about `bitrate_bps / 8` bytes a second; `application` 'audio' or 'voip'.

    Raises CutError if the samples are not finite and one-dimensional or the rate is not 6000..128000, AudioError
    without libopus.
    """
    audio = np.asarray(audio, np.float32)
    if audio.ndim != 1 or len(audio) > LONGEST_S * RATE_HZ or not np.isfinite(audio).all():
        raise CutError(
            f"opus: got an array of shape {audio.shape}, expected finite mono samples, at most {LONGEST_S} s"
        )
    if not 6_000 <= bitrate_bps <= 128_000:
        raise CutError(f"opus: got {bitrate_bps} bit/s, expected 6000..128000")
    opus = libopus()
    try:
        encoder = opus.Encoder(RATE_HZ, 1, application)
        encoder.bitrate = bitrate_bps
        encoder.complexity = _COMPLEXITY
        lookahead = int(encoder.lookahead)
        packets = _packets(len(audio), lookahead)
        padded = np.zeros(packets * PACKET_SAMPLES, "<f4")
        padded[: len(audio)] = np.clip(audio, -1.0, 1.0)
        parts = [_HEADER.pack(lookahead)]
        for at in range(0, len(padded), PACKET_SAMPLES):
            packet = encoder.encode_float(padded[at : at + PACKET_SAMPLES].tobytes(), PACKET_SAMPLES)
            parts += [_pack_length(len(packet)), packet]
    except opus.OpusError as error:
        raise CutError(f"opus: the encoder failed ({error})") from error
    return b"".join(parts)


def decode_segment(payload: bytes | memoryview, samples: int) -> Floats:
    """The segment's `samples` samples [n], aligned with what was encoded.

    Raises CutError if the payload is not `samples` long, is cut short or does not decode, AudioError without libopus.
    """
    if not 0 <= samples <= LONGEST_S * RATE_HZ:
        raise CutError(f"opus: got a segment of {samples} samples, expected 0..{LONGEST_S * RATE_HZ}")
    if len(payload) < _HEADER.size:
        raise CutError(f"opus: got {len(payload)} bytes, expected at least {_HEADER.size}")
    (lookahead,) = _HEADER.unpack_from(payload)
    if lookahead > _LONGEST_LOOKAHEAD:
        raise CutError(f"opus: got a lookahead of {lookahead} samples, expected at most {_LONGEST_LOOKAHEAD}")
    packets = _split(bytes(payload[_HEADER.size :]), _packets(samples, lookahead))
    opus = libopus()
    decoded = []
    try:
        decoder = opus.Decoder(RATE_HZ, 1)
        for packet in packets:
            piece = np.frombuffer(decoder.decode_float(packet, PACKET_SAMPLES), np.float32)
            if len(piece) != PACKET_SAMPLES:
                raise CutError(f"opus: got a packet of {len(piece)} samples, expected {PACKET_SAMPLES}")
            decoded.append(piece)
    except opus.OpusError as error:
        raise CutError(f"opus: a packet does not decode ({error})") from error
    audio = np.concatenate(decoded) if decoded else np.zeros(0, np.float32)
    return audio[lookahead : lookahead + samples].copy()


def packets_bytes(payload: bytes, samples: int) -> int:
    """Bytes of the Opus packets in a segment of `samples` samples, without this layout's header and lengths."""
    (lookahead,) = _HEADER.unpack_from(payload)
    return sum(map(len, _split(payload[_HEADER.size :], _packets(samples, lookahead))))


def _packets(samples: int, lookahead: int) -> int:
    """Packets that carry `samples` samples and the codec's delay."""
    return -(-(samples + lookahead) // PACKET_SAMPLES) if samples else 0


def _pack_length(length: int) -> bytes:
    if length < 252:
        return bytes((length,))
    first = 252 + (length & 3)
    return bytes((first, (length - first) >> 2))


def _split(data: bytes, expected: int) -> list[bytes]:
    """The packets in `data`; checks every length against what is there before it is used."""
    packets: list[bytes] = []
    at = 0
    while at < len(data):
        length = data[at]
        at += 1
        if length >= 252:
            if at >= len(data):
                raise CutError("opus: the payload ends in a packet's length")
            length += 4 * data[at]
            at += 1
        if not 1 <= length <= LARGEST_PACKET or at + length > len(data):
            raise CutError(f"opus: got a packet of {length} bytes with {len(data) - at} left")
        if len(packets) == expected:
            raise CutError(f"opus: got more than the {expected} packets expected")
        packets.append(data[at : at + length])
        at += length
    if len(packets) != expected:
        raise CutError(f"opus: got {len(packets)} packets, expected {expected}")
    return packets


def libopus() -> ModuleType:
    """The binding; raises AudioError, saying what to install, where it or its library is missing."""
    try:
        import opuslib_next
    except ImportError as error:
        raise AudioError(f"coding audio with Opus needs opuslib-next ({error}): pip install opuslib-next") from error
    except Exception as error:  # the binding raises a bare Exception where it does not find the library
        raise AudioError(f"coding audio with Opus needs libopus ({error}): apt-get install libopus0") from error
    return opuslib_next
