"""Opus as a stream: quality against the input, DTX, forward error correction and concealment, bad packets."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.audio.synth import render_scene
from streamsplit.codec.opus_stream import FRAME_MS, OpusDecoderStream, OpusEncoderStream, OpusSettings
from streamsplit.errors import ConfigError, CutError

RATE = 16_000


def speech(seconds: float = 4.0) -> np.ndarray:
    return render_scene("conversation", seconds, np.random.default_rng(1)).clip(-1, 1).astype(np.float32)


def coded(audio: np.ndarray, **changes) -> tuple[list[bytes], OpusEncoderStream]:
    encoder = OpusEncoderStream(OpusSettings(**changes))
    size = encoder.settings.frame_samples
    return [encoder.encode(audio[at : at + size]) for at in range(0, len(audio) - size + 1, size)], encoder


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1])


@pytest.mark.parametrize("frame_ms", FRAME_MS)
def test_every_frame_size_comes_back_as_it_went_in_later_by_the_lookahead(frame_ms: float) -> None:
    audio = speech()
    packets, encoder = coded(audio, frame_ms=frame_ms, bitrate_bps=64_000, dtx=False, application="audio")
    decoder = OpusDecoderStream(frame_ms)
    decoded = np.concatenate([decoder.decode(packet) for packet in packets])
    late = encoder.lookahead
    assert correlation(decoded[late:], audio[: len(decoded) - late]) > 0.95
    assert 0 < late < 0.03 * RATE


def test_the_rate_is_about_what_is_asked_for_and_can_change_on_the_way() -> None:
    audio = speech(8.0)
    packets, encoder = coded(audio, dtx=False)
    assert 2_000 < sum(map(len, packets)) / 8.0 < 4_000  # 24 kbit/s are 3000 bytes a second
    encoder.bitrate_bps = 8_000
    assert encoder.bitrate_bps == 8_000
    low = [encoder.encode(audio[at : at + 320]) for at in range(0, len(audio), 320)]
    assert sum(map(len, low)) < 0.6 * sum(map(len, packets))
    with pytest.raises(CutError, match=r"expected 6000\.\.128000"):
        encoder.bitrate_bps = 5_000


def test_silence_costs_next_to_nothing_with_dtx() -> None:
    silence = np.zeros(4 * RATE, np.float32)
    with_dtx, _ = coded(silence, dtx=True)
    without, _ = coded(silence, dtx=False)
    assert sum(map(len, with_dtx[50:])) < 0.5 * sum(map(len, without[50:]))


def test_a_lost_frame_is_better_recovered_than_concealed_and_better_concealed_than_silent() -> None:
    audio = speech(6.0)
    packets, encoder = coded(audio, fec=True, expected_loss=0.3, dtx=False)
    late = encoder.lookahead
    lost = [i for i in range(10, len(packets) - 1) if i % 5 == 0]

    def heard(how: str) -> float:
        decoder, pieces = OpusDecoderStream(), []
        for i, packet in enumerate(packets):
            if i not in lost:
                pieces.append(decoder.decode(packet))
            elif how == "recover":
                pieces.append(decoder.recover(packets[i + 1]))
            elif how == "conceal":
                pieces.append(decoder.conceal())
            else:
                decoder.conceal()
                pieces.append(np.zeros(320, np.float32))
        decoded = np.concatenate(pieces)[late:]
        reference = audio[: len(decoded)]
        rows = np.concatenate([np.arange(320 * i - late, 320 * i - late + 320) for i in lost])
        return correlation(decoded[rows], reference[rows])

    recovered, concealed = heard("recover"), heard("conceal")
    assert recovered > concealed > 0.05 and recovered > 0.5


def test_garbage_and_other_lengths_are_refused_and_the_decoder_goes_on() -> None:
    packets, _ = coded(speech(1.0))
    decoder = OpusDecoderStream()
    for bad, text in ((b"", "0 bytes"), (b"\xff" * 2_000, "2000 bytes"), (b"\x03\xff\xff", "does not decode|expected")):
        with pytest.raises(CutError, match=text):
            decoder.decode(bad)
    long, _ = coded(speech(1.0), frame_ms=60.0)
    with pytest.raises(CutError, match=r"does not decode|960 samples"):
        decoder.decode(long[3])
    assert decoder.decode(packets[5]).shape == (320,) and decoder.recover(packets[6]).shape == (320,)


def test_other_than_one_frame_of_numbers_is_refused() -> None:
    encoder = OpusEncoderStream()
    for samples in (np.zeros(319, np.float32), np.zeros((2, 160), np.float32), np.full(320, np.nan, np.float32)):
        with pytest.raises(CutError, match="expected 320 finite samples"):
            encoder.encode(samples)
    with pytest.raises(ConfigError, match="frame_ms"):
        OpusSettings(frame_ms=30.0)
