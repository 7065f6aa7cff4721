"""Audio files: every format, rate and channel count comes out as mono at 16 kHz; what cannot be read says so."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamsplit.audio.files import iter_audio, read_audio
from streamsplit.errors import AudioError

FORMATS = [
    ("wav", "WAV", "PCM_16"), ("wav", "WAV", "FLOAT"), ("wav", "WAV", "PCM_U8"), ("flac", "FLAC", "PCM_24"),
    ("ogg", "OGG", "VORBIS"), ("mp3", "MP3", "MPEG_LAYER_III"), ("opus", "OGG", "OPUS"),
]  # fmt: skip


def tone(rate_hz: int = 16_000, seconds: float = 1.0, hz: float = 500.0) -> np.ndarray:
    return (0.4 * np.sin(2.0 * np.pi * hz * np.arange(int(rate_hz * seconds)) / rate_hz)).astype(np.float32)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine after the best alignment within 100 ms (MP3 pads its start)."""
    n = min(len(a), len(b)) - 3_200
    middle = a[1_600 : 1_600 + n]

    def cosine(piece: np.ndarray) -> float:
        return float(np.dot(middle, piece) / (np.linalg.norm(middle) * np.linalg.norm(piece)))

    return max(cosine(b[start : start + n]) for start in range(0, 3_200, 2))


@pytest.mark.parametrize(("suffix", "container", "subtype"), FORMATS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_reads_as_mono_at_16_khz(tmp_path: Path, suffix: str, container: str, subtype: str, channels: int):
    path = tmp_path / f"tone.{suffix}"
    rate_hz = 48_000
    audio = np.repeat(tone(rate_hz)[:, None], channels, axis=1)
    soundfile.write(path, audio, rate_hz, format=container, subtype=subtype)
    result = read_audio(path)
    assert result.dtype == np.float32 and result.ndim == 1
    assert abs(len(result) - 16_000) < 2_000
    assert similarity(result, tone()) > 0.98


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 44_100])
def test_mixed_rates_come_out_equal_in_length_and_level(tmp_path: Path, rate_hz: int):
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone(rate_hz), rate_hz)
    result = read_audio(path)
    assert abs(len(result) - 16_000) <= 2
    assert np.sqrt(np.mean(result[200:-200] ** 2)) == pytest.approx(0.4 / np.sqrt(2.0), rel=0.01)


def test_blocks_of_a_long_file_join_to_the_whole(tmp_path: Path):
    path = tmp_path / "long.flac"
    soundfile.write(path, tone(44_100, 7.3), 44_100)
    blocks = list(iter_audio(path, 1_600))
    assert {len(block) for block in blocks[:-1]} == {1_600} and 0 < len(blocks[-1]) <= 1_600
    np.testing.assert_array_equal(np.concatenate(blocks), read_audio(path))


def test_a_container_that_libsndfile_cannot_read_goes_through_pyav(tmp_path: Path):
    av = pytest.importorskip("av")
    path = tmp_path / "tone.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44_100, layout="stereo")
        samples = np.ascontiguousarray(np.repeat(tone(44_100)[None, :], 2, axis=0))
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate = 44_100
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.SoundFile(path)
    result = read_audio(path)
    assert abs(len(result) - 16_000) < 2_000
    assert similarity(result, tone()) > 0.98


def test_without_pyav_such_a_container_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "tone.m4a"
    path.write_bytes(b"\0\0\0\x20ftypM4A " + bytes(100))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(AudioError, match=r"'\.\[media\]'"):
        read_audio(path)


def test_what_cannot_be_read_is_an_error_that_names_the_file(tmp_path: Path):
    cases = {
        "missing.wav": None,
        "empty.wav": b"",
        "text.wav": b"this is no audio at all, but it goes on for a while" * 20,
        "header.wav": b"RIFF\x24\0\0\0WAVEfmt ",
    }
    for name, content in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(AudioError, match=name.replace(".", r"\.")):
            read_audio(tmp_path / name)
    with pytest.raises(AudioError, match="not a file"):
        read_audio(tmp_path)


def test_a_file_without_samples_and_one_with_nan_are_refused(tmp_path: Path):
    soundfile.write(tmp_path / "none.wav", np.zeros(0, np.float32), 16_000)
    with pytest.raises(AudioError, match="no audio"):
        read_audio(tmp_path / "none.wav")
    soundfile.write(tmp_path / "nan.wav", np.array([0.0, np.nan], np.float32), 16_000, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav.*NaN"):
        read_audio(tmp_path / "nan.wav")


def test_one_sample_is_a_file(tmp_path: Path):
    soundfile.write(tmp_path / "one.wav", np.array([0.5], np.float32), 16_000, subtype="FLOAT")
    np.testing.assert_allclose(read_audio(tmp_path / "one.wav"), [0.5])


def test_real_recordings_read_in_every_format_there_is(data_dir: Path):
    seen = set()
    for path in sorted(p for p in data_dir.rglob("*") if p.suffix in (".wav", ".flac", ".ogg"))[::400]:
        audio = read_audio(path)
        assert len(audio) > 1_000 and np.isfinite(audio).all()
        seen.add(path.suffix)
    assert seen
