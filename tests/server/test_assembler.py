"""Windows assembled from pieces equal the device's own, whatever was sent how, across gaps, refusals and restarts."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.audio.windows import Window, WindowStream
from streamsplit.codec.features import pack_features
from streamsplit.codec.opus import encode_segment
from streamsplit.codec.pcm import pack_pcm
from streamsplit.codec.tinystream.bitstream import pack, unpack
from streamsplit.codec.tinystream.segments import packaged_segments
from streamsplit.codec.tinystream.streams import DecoderStream
from streamsplit.edge.payload import PieceChain, pack_input
from streamsplit.errors import CheckpointError, ProtocolError
from streamsplit.server.assembler import Assembler
from streamsplit.server.codecs import CodecShelf
from streamsplit.server.settings import SignalSettings
from streamsplit.splitting.cut import Cut
from streamsplit.weights.codec_file import read_codec
from streamsplit.wire.media import Encoding, MediaHeader, Resolution

NOTHING = np.zeros(0, np.float32)


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """Noise with a slow level: every window differs."""
    rng = np.random.default_rng(seed)
    n = int(16_000 * seconds)
    level = 0.05 + 0.3 * np.sin(np.arange(n) / 9_000.0) ** 2
    audio = (level * rng.standard_normal(n)).clip(-1, 1).astype(np.float32)
    return (np.rint(audio * 32768).clip(-32768, 32767) / 32768).astype(np.float32)  # on the grid of 16-bit audio


def windows_of(audio: np.ndarray, resolution: Resolution = Resolution.FULL) -> list[Window]:
    """The device's windows."""
    return WindowStream().push(audio, resolution)


def add(assembler: Assembler, window: Window, encoding: Encoding, new: int) -> np.ndarray:
    """Sends a window's last `new` frames through its codec into the assembler."""
    packed = pack_input(window, encoding, new)
    header = MediaHeader(window.index, 0, 0, encoding, window.resolution, 0, 0.0, new, 0.0, 0)
    return assembler.add(header, memoryview(packed.payload))


@pytest.mark.parametrize("resolution", list(Resolution))
def test_pcm_pieces_give_the_devices_features_to_the_bit(resolution: Resolution) -> None:
    assembler = Assembler(SignalSettings())
    for number, window in enumerate(windows_of(sound(4.0), resolution)):
        got = add(assembler, window, Encoding.PCM16, 100 if number == 0 else 50)
        np.testing.assert_array_equal(got, window.features)


@pytest.mark.parametrize("resolution", list(Resolution))
@pytest.mark.parametrize(("encoding", "bound"), [(Encoding.LOGMEL_FP16, 0.01), (Encoding.LOGMEL_INT8, 0.06)])
def test_feature_pieces_give_the_devices_features_within_the_codecs_bound(
    resolution: Resolution, encoding: Encoding, bound: float
) -> None:
    assembler = Assembler(SignalSettings())
    for number, window in enumerate(windows_of(sound(4.0), resolution)):
        got = add(assembler, window, encoding, 100 if number == 0 else 50)
        assert got.shape == window.features.shape
        assert np.abs(got - window.features).max() < bound


def test_opus_pieces_stay_aligned_in_time() -> None:
    rng = np.random.default_rng(3)
    audio = np.zeros(16_000 * 4, np.float32)
    for click in rng.integers(2_000, 62_000, 12):  # short tones: misplaced by a frame they would correlate badly
        audio[click : click + 1_500] += 0.5 * np.sin(np.arange(1_500) * 0.35).astype(np.float32)
    assembler = Assembler(SignalSettings())
    for number, window in enumerate(windows_of(audio)):
        got = add(assembler, window, Encoding.OPUS24, 100 if number == 0 else 50)
        loud = window.features.max(0) > window.features.max() - 4
        energy, expected = np.logaddexp.reduce(got, 0), np.logaddexp.reduce(window.features, 0)
        assert got.shape == window.features.shape
        assert np.abs(energy - expected)[loud].mean() < 1.0


def test_windows_that_were_not_sent_only_need_a_longer_piece() -> None:
    assembler = Assembler(SignalSettings(window_frames=100, stride_frames=20))
    stream = WindowStream(stride_frames=20)
    windows = stream.push(sound(4.0))
    add(assembler, windows[0], Encoding.LOGMEL_FP16, 100)
    got = add(assembler, windows[3], Encoding.LOGMEL_FP16, 60)
    assert np.abs(got - windows[3].features).max() < 0.01


def test_more_frames_than_needed_replace_what_was_there() -> None:
    assembler = Assembler(SignalSettings())
    windows = windows_of(sound(3.0))
    add(assembler, windows[0], Encoding.LOGMEL_INT8, 100)
    got = add(assembler, windows[1], Encoding.LOGMEL_FP16, 80)
    assert np.abs(got - windows[1].features)[:, 20:].max() < 0.01


def test_features_then_audio_needs_no_whole_window_if_the_piece_reaches_back_far_enough() -> None:
    assembler = Assembler(SignalSettings())
    windows = windows_of(sound(3.0))
    add(assembler, windows[0], Encoding.LOGMEL_FP16, 100)
    got = add(assembler, windows[1], Encoding.PCM16, 52)  # two frames more: those that reach back into unknown audio
    assert np.abs(got - windows[1].features).max() < 0.01


@pytest.mark.parametrize(("encoding", "healed"), [(Encoding.LOGMEL_FP16, 2), (Encoding.PCM16, 3)])
def test_a_piece_without_its_overlap_is_refused_yet_kept_so_that_the_stream_heals(
    encoding: Encoding, healed: int
) -> None:
    assembler = Assembler(SignalSettings())
    windows = windows_of(sound(4.0))
    for index in range(1, healed):  # audio takes one window more: its first two frames reach back into lost samples
        with pytest.raises(ProtocolError, match=f"missing_overlap: window {index}: got 50 of 100"):
            add(assembler, windows[index], encoding, 50)
    got = add(assembler, windows[healed], encoding, 50)
    np.testing.assert_allclose(got, windows[healed].features, atol=0.01)


def test_a_gap_in_the_window_count_is_noticed() -> None:
    assembler = Assembler(SignalSettings())
    windows = windows_of(sound(5.0))
    add(assembler, windows[0], Encoding.LOGMEL_FP16, 100)
    with pytest.raises(ProtocolError, match="missing_overlap"):
        add(assembler, windows[2], Encoding.LOGMEL_FP16, 50)


def test_a_change_of_resolution_needs_a_whole_window() -> None:
    assembler = Assembler(SignalSettings())
    audio = sound(4.0)
    full, reduced = windows_of(audio), windows_of(audio, Resolution.REDUCED)
    add(assembler, full[0], Encoding.PCM16, 100)
    with pytest.raises(ProtocolError, match="missing_overlap"):
        add(assembler, reduced[1], Encoding.PCM16, 50)
    got = add(assembler, reduced[2], Encoding.PCM16, 100)
    np.testing.assert_allclose(got, reduced[2].features, atol=2e-5)


def test_pieces_of_codes_give_the_log_mel_of_one_decoded_stream() -> None:
    """Oracle: all codes through the streaming decoder at once; what looks into a piece's last frame, which is decoded
    before what follows it is known, differs a little, and nothing else."""
    windows = windows_of(sound(5.0))
    assembler, codes, got = Assembler(SignalSettings()), [], []
    for number, window in enumerate(windows):
        new = 100 if number == 0 else 50
        codes.append(unpack(pack_input(window, Encoding.TINYSTREAM, new).payload).indices)
        got.append(add(assembler, window, Encoding.TINYSTREAM, new))
    model = read_codec("tiny_mel").model
    decoded = DecoderStream(model).push(np.concatenate(codes, 1))[model.settings.lookahead * 320 + 80 :]
    expected = windows_of(decoded)
    for ours, theirs in zip(got, expected, strict=False):
        steady = np.ones(100, bool)
        steady[[48, 49, 98, 99]] = False
        assert np.abs(ours - theirs.features)[:, steady].max() < 2e-3
        assert np.abs(ours - theirs.features).mean() < 0.1


def test_codes_after_a_hole_or_of_another_kind_are_decoded_from_silence() -> None:
    windows = windows_of(sound(4.0))
    assembler = Assembler(SignalSettings())
    add(assembler, windows[0], Encoding.OPUS24, 100)
    after_sound = add(assembler, windows[1], Encoding.TINYSTREAM, 100)
    alone = add(Assembler(SignalSettings()), windows[1], Encoding.TINYSTREAM, 100)
    np.testing.assert_array_equal(after_sound, alone)
    with pytest.raises(ProtocolError, match="missing_overlap"):
        add(assembler, windows[3], Encoding.TINYSTREAM, 50)


def test_a_server_decodes_the_codecs_that_it_is_told_to() -> None:
    window = windows_of(sound(2.0))[0]
    with pytest.raises(ProtocolError, match=r"got codes of codec [0-9a-f]{8}, expected none"):
        add(Assembler(SignalSettings(), CodecShelf(())), window, Encoding.TINYSTREAM, 100)
    with pytest.raises(CheckpointError, match="got 'grand', expected a packaged codec"):
        CodecShelf(("grand",)).load()


@pytest.mark.parametrize("encoding", [Encoding.PCM16, Encoding.LOGMEL_FP16, Encoding.OPUS24, Encoding.TINYSTREAM])
@pytest.mark.parametrize("resolution", list(Resolution))
def test_a_restart_between_any_two_windows_changes_no_bit(encoding: Encoding, resolution: Resolution) -> None:
    windows = windows_of(sound(4.0), resolution)
    through, restarted = Assembler(SignalSettings()), Assembler(SignalSettings())
    for number, window in enumerate(windows):
        expected = add(through, window, encoding, 100 if number == 0 else 50)
        saved = restarted.save()
        restarted = Assembler(SignalSettings())
        restarted.load(saved)
        np.testing.assert_array_equal(add(restarted, window, encoding, 100 if number == 0 else 50), expected)


def test_an_overlap_that_does_not_read_is_dropped_and_the_next_whole_window_is_fine() -> None:
    assembler = Assembler(SignalSettings())
    windows = windows_of(sound(3.0))
    add(assembler, windows[0], Encoding.PCM16, 100)
    saved = assembler.save()
    for broken in (b"", saved[:10], saved[:-1], b"\x09" + saved[1:]):
        other = Assembler(SignalSettings())
        other.load(broken)
        with pytest.raises(ProtocolError, match="missing_overlap"):
            add(other, windows[1], Encoding.PCM16, 50)
        add(other, windows[2], Encoding.PCM16, 100)


@pytest.mark.parametrize(
    ("encoding", "payload", "new", "code"),
    [
        (Encoding.PCM16, b"\x00\x00" * 100, 100, "bad_media"),
        (Encoding.PCM16, b"\x00", 100, "bad_media"),
        (Encoding.OPUS24, b"garbage", 100, "bad_media"),
        (Encoding.TINYSTREAM, b"garbage", 100, "bad_media"),
        (Encoding.TINYSTREAM, pack(np.zeros((5, 51), np.int64), 9, b"none"), 100, "bad_media"),  # no codec of ours
        (Encoding.TINYSTREAM, packaged_segments().encode(np.zeros(8_000, np.float32), NOTHING), 100, "bad_media"),
        (Encoding.LOGMEL_FP16, b"", 100, "bad_media"),
        (Encoding.LOGMEL_FP16, pack_features(np.zeros((128, 50), np.float32), Encoding.LOGMEL_FP16), 100, "bad_media"),
        (Encoding.LOGMEL_FP16, pack_features(np.zeros((64, 100), np.float32), Encoding.LOGMEL_FP16), 100, "bad_media"),
        (Encoding.PCM16, pack_pcm(np.zeros(16_240, np.float32)), 0, "bad_media"),
        (Encoding.PCM16, pack_pcm(np.zeros(16_240, np.float32)), 101, "bad_media"),
        (Encoding.PCM16, pack_pcm(np.zeros(16_240, np.float32)), 33, "bad_media"),
        (Encoding.OPUS24, encode_segment(np.zeros(8_000, np.float32)), 100, "bad_media"),
    ],
)
def test_payloads_that_do_not_fit_their_header_are_refused(
    encoding: Encoding, payload: bytes, new: int, code: str
) -> None:
    header = MediaHeader(0, 0, 0, encoding, Resolution.FULL, 0, 0.0, new, 0.0, 0)
    with pytest.raises(ProtocolError) as caught:
        Assembler(SignalSettings()).add(header, memoryview(payload))
    assert caught.value.code == code


def test_nan_in_features_is_refused_and_spoils_nothing_after_it() -> None:
    assembler = Assembler(SignalSettings())
    windows = windows_of(sound(4.0))
    add(assembler, windows[0], Encoding.LOGMEL_FP16, 100)
    payload = bytearray(pack_input(windows[1], Encoding.LOGMEL_FP16, 50).payload)
    payload[-2:] = np.float16(np.nan).tobytes()
    header = MediaHeader(1, 0, 0, Encoding.LOGMEL_FP16, Resolution.FULL, 0, 0.0, 50, 0.0, 0)
    with pytest.raises(ProtocolError):
        assembler.add(header, memoryview(payload))
    got = add(assembler, windows[2], Encoding.LOGMEL_FP16, 100)
    assert np.abs(got - windows[2].features).max() < 0.01


def test_the_devices_own_choice_of_pieces_always_assembles() -> None:
    """Random cuts, resolutions and skipped windows, with the device's bookkeeping of what it may leave out."""
    rng = np.random.default_rng(5)
    chain, assembler = PieceChain(100, 50), Assembler(SignalSettings())
    audio = sound(30.0)
    streams = {resolution: windows_of(audio, resolution) for resolution in Resolution}
    resolution = Resolution.FULL
    short = 0
    for index in range(len(streams[resolution])):
        if rng.random() < 0.1:
            resolution = Resolution(1 - resolution)
        if rng.random() < 0.2:
            continue  # kept on the device
        window = streams[resolution][index]
        coded = [Encoding.PCM16, Encoding.LOGMEL_FP16, Encoding.OPUS24, Encoding.TINYSTREAM]
        encoding = rng.choice(coded, p=[0.4, 0.3, 0.15, 0.15])
        encoding = Encoding(int(encoding))
        new = chain.new_frames(window, encoding)
        short += new < 100
        got = add(assembler, window, encoding, new)
        chain.accepted(window, Cut(0, encoding))
        if encoding in (Encoding.PCM16, Encoding.LOGMEL_FP16):
            part = new // 2 if resolution is Resolution.REDUCED else new
            assert np.abs(got - window.features)[:, -part + 2 :].max() < 0.5
    assert short > 15
