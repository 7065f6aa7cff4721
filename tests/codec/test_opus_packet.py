"""Whether a packet of Opus carries a copy of the sound before it: what its flags say against what the decoder does."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamsplit.audio.synth import render_scene
from streamsplit.codec.jitter import JitterBuffer, Play
from streamsplit.codec.opus import libopus
from streamsplit.codec.opus_packet import carries_copy
from streamsplit.codec.opus_stream import OpusDecoderStream, OpusEncoderStream, OpusSettings
from streamsplit.codec.reorder import ReorderBuffer


def packets(seconds: float = 3.0, **changes) -> list[bytes]:
    """Of speech with a pause in it."""
    audio = render_scene("conversation", seconds, np.random.default_rng(1)).clip(-1, 1).astype(np.float32)
    audio[len(audio) // 2 : 2 * len(audio) // 3] = 0.0
    encoder = OpusEncoderStream(OpusSettings(**changes))
    size = encoder.settings.frame_samples
    return [encoder.encode(audio[at : at + size]) for at in range(0, len(audio) - size + 1, size)]


def recovers(stream: list[bytes], place: int, frame_ms: float = 20.0) -> bool:
    """Whether the decoder, given the packet at `place` for the one before it, plays anything else than it would without
    any packet: without a copy it conceals."""
    played = []
    for following in (stream[place], None):
        decoder = OpusDecoderStream(frame_ms)
        for packet in stream[max(0, place - 9) : place - 1]:
            decoder.decode(packet)
        played.append(decoder.conceal() if following is None else decoder.recover(following))
    return not np.array_equal(*played)


@pytest.mark.parametrize(
    "changes",
    [
        {"fec": True, "expected_loss": 0.1, "dtx": False},
        {"fec": True, "expected_loss": 0.2, "dtx": True, "bitrate_bps": 32_000},
        {"fec": True, "expected_loss": 0.2, "frame_ms": 10.0},
        {"fec": True, "expected_loss": 0.2, "frame_ms": 40.0},
        {"fec": True, "expected_loss": 0.2, "frame_ms": 60.0},
        {"fec": False},
        {"fec": True, "expected_loss": 0.2, "application": "restricted_lowdelay"},  # CELT: never a copy
    ],
)
def test_a_packet_carries_a_copy_where_the_decoder_finds_one(changes: dict) -> None:
    stream, frame_ms = packets(**changes), changes.get("frame_ms", 20.0)
    places = range(9, len(stream), max(1, len(stream) // 30))
    said = [carries_copy(stream[place]) for place in places]
    assert said == [recovers(stream, place, frame_ms) for place in places]
    may = changes["fec"] and changes.get("application") is None
    assert 0 < sum(said) < len(said) if may else not any(said)  # speech has one, pauses have none


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("pad", [0, 1, 300])
def test_several_frames_and_padding_in_a_packet_are_read_over(count: int, pad: int) -> None:
    """Made by the library's own repacketizer: frames of equal and of other sizes, with and without padding."""
    api = libopus().api.libopus
    api.opus_repacketizer_create.restype = ctypes.c_void_p
    stream = packets(fec=True, expected_loss=0.2, dtx=False)
    seen = set()
    for place in range(10, 40):
        maker = ctypes.c_void_p(api.opus_repacketizer_create())
        frames = [ctypes.create_string_buffer(packet, len(packet)) for packet in stream[place : place + count]]
        out = ctypes.create_string_buffer(4_000)
        try:
            if any(api.opus_repacketizer_cat(maker, frame, len(frame)) for frame in frames):
                continue  # of another bandwidth
            size = api.opus_repacketizer_out(maker, out, len(out))
        finally:
            api.opus_repacketizer_destroy(maker)
        if pad:
            assert api.opus_packet_pad(out, size, size + pad) == 0
        assert carries_copy(out.raw[: size + pad]) == carries_copy(stream[place])
        seen.add((carries_copy(stream[place]), out.raw[0] & 3))
    assert {copied for copied, _ in seen} == {True, False}
    assert {code for _, code in seen} <= ({3} if pad or count == 3 else {0} if count == 1 else {1, 2})


@settings(max_examples=300, deadline=None, derandomize=True)
@given(packet=st.binary(max_size=40))
def test_whatever_the_bytes_are_it_is_a_yes_or_a_no(packet: bytes) -> None:
    assert carries_copy(packet) in (True, False)


def test_only_what_the_decoder_recovers_counts_as_recovered_and_all_else_is_concealed() -> None:
    stream = packets(fec=True, expected_loss=0.1, dtx=False)
    lost = set(range(12, len(stream) - 2, 4))
    copied = {place for place in lost if recovers(stream, place + 1)}
    assert copied and copied != lost
    heard, asked = JitterBuffer(fec=True), ReorderBuffer(20.0)
    recovered = []
    for place, packet in enumerate(stream):
        if place not in lost:
            heard.push(place, packet, 20.0 * place)
            asked.push(place, packet, 20.0 * place)
        heard.pull(20.0 * place)
        recovered += [each.place for each in asked.take(20.0 * place) if each.play is Play.RECOVER]
    heard.finish(len(stream))
    while heard.pull(20.0 * len(stream)).play is not Play.END:
        pass
    assert set(recovered) == copied
    for counts in (heard.counts, asked.counts):
        assert (counts.recovered, counts.concealed) == (len(copied), len(lost - copied))
