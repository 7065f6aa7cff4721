"""What crosses for a window: pieces that join on the server to exactly the windows of the device."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.audio.windows import Window, WindowStream
from streamsplit.codec.features import unpack_features
from streamsplit.codec.pcm import unpack_pcm
from streamsplit.codec.tinystream.bitstream import unpack
from streamsplit.codec.tinystream.frames import IntegerEncoderStream
from streamsplit.codec.tinystream.integer_file import read_integer
from streamsplit.codec.tinystream.segments import SegmentEncoder
from streamsplit.edge.payload import PieceChain, pack_input, pack_result
from streamsplit.encoders.embedding_codec import unpack_embedding
from streamsplit.errors import CutError
from streamsplit.splitting.cut import Cut
from streamsplit.wire.media import Encoding, Resolution
from streamsplit.wire.types import FrameType

INT8, PCM, OPUS, CODES = Encoding.LOGMEL_INT8, Encoding.PCM16, Encoding.OPUS24, Encoding.TINYSTREAM


def windows(seconds: float = 4.0, resolution: Resolution = Resolution.FULL) -> list[Window]:
    audio = np.random.default_rng(0).normal(0, 0.1, int(16000 * seconds)).astype(np.float32)
    return WindowStream().push(audio, resolution)


def chain() -> PieceChain:
    return PieceChain(100, 50)


@pytest.mark.parametrize("resolution", list(Resolution))
def test_pieces_of_features_join_to_the_windows(resolution: Resolution) -> None:
    pieces, frames = chain(), np.zeros((128 >> resolution, 0), np.float32)
    length = 100 >> resolution
    for window in windows(resolution=resolution):
        packed = pack_input(window, Encoding.LOGMEL_FP16, pieces.new_frames(window, Encoding.LOGMEL_FP16))
        assert packed.frame_type is FrameType.FEATURES
        frames = np.concatenate([frames, unpack_features(packed.payload)], axis=1)
        assert np.abs(frames[:, -length:] - window.features).max() < 0.02
        pieces.accepted(window, Cut(0, Encoding.LOGMEL_FP16))
    assert frames.shape[1] == 50 * (len(windows()) + 1) >> resolution


def test_pieces_of_audio_join_without_overlap_or_hole() -> None:
    pieces, audio = chain(), np.zeros(0, np.float32)
    for window in windows():
        packed = pack_input(window, PCM, pieces.new_frames(window, PCM))
        assert packed.frame_type is FrameType.AUDIO
        audio = np.concatenate([audio, unpack_pcm(packed.payload)])
        assert np.abs(audio[-len(window.audio) :] - window.audio).max() <= 1 / 32768
        pieces.accepted(window, Cut(0, PCM))
    whole = np.random.default_rng(0).normal(0, 0.1, 64000).astype(np.float32)
    assert np.abs(audio - whole[: len(audio)]).max() <= 1 / 32768


def test_a_window_is_sent_whole_unless_the_one_before_it_went_up_the_same_way() -> None:
    first, second, third, *_ = windows()
    pieces = chain()
    assert pieces.new_frames(first, INT8) == 100
    pieces.accepted(first, Cut(0, INT8))
    assert pieces.new_frames(second, INT8) == 50
    assert pieces.new_frames(second, PCM) == 100  # its first frames reach into samples that the server does not have
    assert pieces.new_frames(third, INT8) == 100  # the second is missing
    assert pieces.new_frames(second._replace(resolution=Resolution.REDUCED), INT8) == 100
    assert pieces.new_frames(second._replace(new_frames=100), INT8) == 100  # a gap in the audio
    pieces.accepted(second, Cut(6, Encoding.INT8))
    assert pieces.new_frames(third, INT8) == 100


def test_features_may_follow_audio_and_audio_audio() -> None:
    first, second, *_ = windows()
    pieces = chain()
    pieces.accepted(first, Cut(0, OPUS))
    assert pieces.new_frames(second, INT8) == 50 and pieces.new_frames(second, PCM) == 50


def test_codes_follow_codes_alone_and_anything_follows_codes() -> None:
    first, second, *_ = windows()
    pieces = chain()
    pieces.accepted(first, Cut(0, OPUS))
    assert pieces.new_frames(second, CODES) == 100  # the server's decoder has heard nothing
    pieces.accepted(first, Cut(0, CODES))
    assert [pieces.new_frames(second, encoding) for encoding in (CODES, PCM, OPUS, INT8)] == [50] * 4


def test_pieces_of_codes_are_the_stream_that_a_microcontroller_sends() -> None:
    """Oracle: the streaming encoder over all of the sound; 80 samples of silence make the first window whole frames."""
    pieces, codes = chain(), []
    for window in windows():
        packed = pack_input(window, CODES, pieces.new_frames(window, CODES))
        assert packed.frame_type is FrameType.AUDIO
        codes.append(unpack(packed.payload).indices)
        pieces.accepted(window, Cut(0, CODES))
    audio = np.random.default_rng(0).normal(0, 0.1, 64000).astype(np.float32)
    expected = IntegerEncoderStream(read_integer("tiny_mel")).push(np.concatenate([np.zeros(80, np.float32), audio]))
    got = np.concatenate(codes, 1)
    np.testing.assert_array_equal(got, expected[:, : got.shape[1]])
    assert got.shape[1] == 51 + 25 * (len(windows()) - 1)


def test_a_codec_of_fewer_quantizers_sends_fewer_bits() -> None:
    window = windows()[0]
    few = pack_input(window, CODES, 50, SegmentEncoder(read_integer("tiny_mel"), 2)).payload
    assert len(few) == 8 + -(-25 * 18 // 8) and unpack(few).indices.shape == (2, 25)


def test_after_a_refusal_the_next_window_is_whole() -> None:
    first, second, *_ = windows()
    pieces = chain()
    pieces.accepted(first, Cut(0, INT8))
    pieces.break_off()
    assert pieces.new_frames(second, INT8) == 100


def test_embeddings_cross_as_embeddings() -> None:
    z = np.random.default_rng(1).normal(size=128).astype(np.float32)
    z /= np.linalg.norm(z)
    packed = pack_result(z, Encoding.EMBEDDING_FP16)
    assert packed.frame_type is FrameType.EMBEDDING and packed.new_frames == 0
    assert np.abs(unpack_embedding(packed.payload) - z).max() < 1e-3
    with pytest.raises(CutError):
        pack_result(z, Encoding.NONE)
