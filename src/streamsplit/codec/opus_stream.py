"""Opus as a stream: an encoder and a decoder with their state, with DTX, forward error correction and concealment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamsplit.codec.opus import LARGEST_PACKET, RATE_HZ, libopus
from streamsplit.config import Settings, setting
from streamsplit.errors import AudioError, CutError

Floats = NDArray[np.float32]
FRAME_MS = (2.5, 5.0, 10.0, 20.0, 40.0, 60.0)


@dataclass(frozen=True, kw_only=True)
class OpusSettings(Settings):
    """How speech is coded; FEC pays only where packets are lost, and costs quality where none are."""

    application: str = setting("voip", choices=("voip", "audio", "restricted_lowdelay"))
    bitrate_bps: int = setting(24_000, low=6_000, high=128_000)
    complexity: int = setting(5, low=0, high=10)
    frame_ms: float = setting(20.0, choices=FRAME_MS)
    dtx: bool = setting(True)  # silence costs a packet of one or two bytes now and then
    fec: bool = setting(False)  # a packet carries the one before it once more, coarsely
    expected_loss: float = setting(0.0, low=0.0, high=1.0)  # share of packets; how much FEC spends

    @property
    def frame_samples(self) -> int:
        """Of one packet, at 16 kHz."""
        return round(self.frame_ms * RATE_HZ / 1000)


class OpusEncoderStream:
    """Codes frame after frame at 16 kHz."""

    def __init__(self, settings: OpusSettings = OpusSettings()) -> None:
        """Raises AudioError without libopus."""
        self.settings = settings
        self._opus = libopus()
        try:
            self._encoder = self._opus.Encoder(RATE_HZ, 1, settings.application)
            self._encoder.complexity = settings.complexity
            self._encoder.dtx = int(settings.dtx)
            self._encoder.inband_fec = int(settings.fec)
            self._encoder.packet_loss_perc = round(100 * settings.expected_loss)
            self._encoder.bitrate = settings.bitrate_bps
            self.lookahead = int(self._encoder.lookahead)  # samples by which the decoded sound is late
        except self._opus.OpusError as error:
            raise AudioError(f"opus: the encoder cannot be made ({error})") from error

    @property
    def bitrate_bps(self) -> int:
        """What is aimed at; may be set at any time, 6000..128000."""
        return int(self._encoder.bitrate)

    @bitrate_bps.setter
    def bitrate_bps(self, value: int) -> None:
        if not 6_000 <= value <= 128_000:
            raise CutError(f"opus: got {value} bit/s, expected 6000..128000")
        self._encoder.bitrate = value

    def encode(self, samples: Floats) -> bytes:
        """One packet of exactly one frame [n] in -1..1; raises CutError on anything else."""
        wanted = self.settings.frame_samples
        samples = np.asarray(samples, np.float32)
        if samples.shape != (wanted,) or not np.isfinite(samples).all():
            raise CutError(f"opus: got an array of shape {samples.shape}, expected {wanted} finite samples")
        try:
            packet: bytes = self._encoder.encode_float(np.clip(samples, -1.0, 1.0).astype("<f4").tobytes(), wanted)
        except self._opus.OpusError as error:
            raise CutError(f"opus: the encoder failed ({error})") from error
        return packet


class OpusDecoderStream:
    """Decodes frame after frame; what did not come is recovered from the packet after it, or concealed."""

    def __init__(self, frame_ms: float = 20.0) -> None:
        """Raises AudioError without libopus."""
        self._samples = OpusSettings(frame_ms=frame_ms).frame_samples
        self._opus = libopus()
        self._decoder = self._opus.Decoder(RATE_HZ, 1)
        self._decode_float = self._opus.api.decoder.libopus_decode_float
        self._out = np.zeros(self._samples, np.float32)
        self._pointer = self._out.ctypes.data_as(self._opus.api.c_float_pointer)

    def decode(self, packet: bytes) -> Floats:
        """The frame [n] of a packet; raises CutError on one that does not decode or has another length."""
        if not 1 <= len(packet) <= LARGEST_PACKET:
            raise CutError(f"opus: got a packet of {len(packet)} bytes, expected 1..{LARGEST_PACKET}")
        return self._run(packet, fec=False)

    def recover(self, following: bytes) -> Floats:
        """The lost frame [n] before a packet, from what forward error correction put into that one; where it holds
        none, concealment. Raises CutError as `decode`."""
        if not 1 <= len(following) <= LARGEST_PACKET:
            raise CutError(f"opus: got a packet of {len(following)} bytes, expected 1..{LARGEST_PACKET}")
        return self._run(following, fec=True)

    def conceal(self) -> Floats:
        """A frame [n] in place of one that did not come."""
        return self._run(b"", fec=False)

    def _run(self, packet: bytes, *, fec: bool) -> Floats:
        """Through the binding's function of the library itself: the binding's own method makes a list of floats."""
        count = self._decode_float(
            self._decoder.decoder_state, packet, len(packet), self._pointer, self._samples, int(fec)
        )
        if count < 0:
            raise CutError(f"opus: a packet does not decode ({self._opus.OpusError(count)})")
        if count != self._samples:
            raise CutError(f"opus: got a packet of {count} samples, expected {self._samples}")
        return self._out.copy()
