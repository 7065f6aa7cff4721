"""Codecs judged: bits as they are counted, delays found, what may be judged on, and a whole study."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from streamsplit.audio.synth import render_scene
from streamsplit.codec.opus import encode_segment, packets_bytes
from streamsplit.codec.tinystream.integerise import activation_peaks
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.errors import ConfigError
from streamsplit.evaluation.codec_rivals import best_delay, codec2, opus, tinystream
from streamsplit.evaluation.codec_run import CodecSettings
from streamsplit.evaluation.codec_sounds import CodecDataSettings, CodecEvaluationSettings, judged_recordings
from streamsplit.evaluation.codec_study import contestants, encoder_times, has_pesq
from streamsplit.weights.codec_file import PublishedCodec

SIZES = {
    "D": 16, "strides": (160, 2), "front": "logmel", "bands": 16, "codebook_dim": 6, "num_quantizers": 3,
    "codebook_size": 16, "decoder": "spectral", "decoder_width": 24, "decoder_blocks": 1,
}  # fmt: skip


def speech(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    return render_scene("conversation", seconds, np.random.default_rng(seed)).clip(-1, 1)


@pytest.fixture(scope="module")
def codec() -> PublishedCodec:
    model = TinyStream(**SIZES).train()
    audio = torch.from_numpy(speech())[None, None]
    with torch.no_grad():
        model(audio)
    return PublishedCodec(model.eval(), {"name": "small"}, tuple(activation_peaks(model, audio)))


def test_bits_are_those_of_the_codes_alone(codec: PublishedCodec) -> None:
    audio = speech(1.01)
    for count, name in ((None, "small 0.6k"), (1, "small 0.2k")):
        made = tinystream(codec, count)
        heard = made.code(audio, True)
        assert made.name == name
        assert heard.coded_bytes == -(-51 * 4 * (count or 3) // 8)
        assert heard.audio.shape == audio.shape
    payload = encode_segment(audio, 9_000)
    assert packets_bytes(payload, len(audio)) == len(payload) - 2 - 51  # 51 packets hold the sound and the lookahead
    assert opus(9_000).code(audio, True).coded_bytes < len(payload)


@pytest.mark.parametrize("lag", [0, 40, 320])
def test_a_delay_is_found_by_the_levels(lag: int) -> None:
    audio = speech(2.0)[::2]
    assert best_delay(audio, np.concatenate([np.zeros(lag, np.float32), audio, np.zeros(800, np.float32)]), 800) == lag


def test_codec2_is_aligned_and_counted() -> None:
    made = codec2(2_400)
    if made is None:
        pytest.skip("c2enc and c2dec are not installed (Debian: codec2)")
    audio = speech(2.0)
    heard = made.code(audio, True)
    assert heard.audio.shape == audio.shape
    assert heard.coded_bytes == 600
    assert np.abs(heard.audio).max() > 0.01


def test_contestants_are_fewer_quantizers_and_the_rivals(codec: PublishedCodec) -> None:
    rows, notes = contestants([codec])
    names = [row.name for row in rows]
    assert names[:6] == ["small 0.6k", "small 0.4k", "small 0.2k", "Opus 6k", "Opus 9k", "Opus 12k"]
    assert len(names) + len([note for note in notes if "Codec2" in note]) == 9
    assert any("PESQ left out" in note for note in notes) != has_pesq()
    slow = TinyStream(**SIZES, sample_rate=8_000)
    with pytest.raises(ConfigError, match="got a codec at 8000 Hz"):
        contestants([PublishedCodec(slow, {"name": "x"}, ())])


def test_lost_frames_are_concealed_and_other_forms_are_rows_of_their_own(codec: PublishedCodec) -> None:
    settings = CodecEvaluationSettings(lost=(0.1, 0.6), forms=("float",), alone=True)
    rows, _ = contestants([codec], settings)
    names = [row.name for row in rows[3:]]
    assert names == ["small 0.6k float", "small 0.6k, 10% lost", "small 0.6k, 60% lost"]
    audio = speech(1.01)
    whole, real, some, most = (row.code(audio, True) for row in (rows[0], *rows[3:]))
    assert whole.coded_bytes == real.coded_bytes == some.coded_bytes == most.coded_bytes
    with torch.no_grad():
        floats = torch.from_numpy(audio)[None, None]
        expected = codec.model.decode(codec.model.encode(floats))[0, 0, : len(audio)].numpy()
    np.testing.assert_array_equal(real.audio, expected)
    apart = [float(np.abs(heard.audio - whole.audio).mean()) for heard in (some, most)]
    assert 0 < apart[0] < apart[1]
    for wrong, message in (
        ({"lost": (1.0,)}, "'lost': got 1.0"),
        ({"forms": ("int4",)}, "expected float or onnx-int8"),
    ):
        with pytest.raises(ConfigError, match=message):
            CodecEvaluationSettings(**wrong)


def test_times_are_positive_and_a_frame_is_a_frame(codec: PublishedCodec) -> None:
    times = encoder_times(codec, speech(1.0))
    assert all(value > 0 for value in times.values())
    assert times["frame_ms"] == pytest.approx(times["encode_stream_rtf"] * 20, rel=1e-6)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number, name in enumerate(("talk/1.wav", "talk/2.wav", "talk/9.wav", "noise/1.wav", "noise/9.wav")):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speech(1.5, number), 16_000)
    return tmp_path / "data"


HELD_OUT = CodecDataSettings(held_out=("*/9.wav",))


def test_only_what_was_held_out_is_judged(data: Path) -> None:
    chosen = judged_recordings(data, HELD_OUT, CodecEvaluationSettings(speech=("talk/9*",), sounds=("noise/9*",)))
    assert [[path.name for path in paths] for paths in chosen] == [["9.wav"], ["9.wav"]]
    with pytest.raises(ConfigError, match=r"talk/1\.wav, which is not held out"):
        judged_recordings(data, HELD_OUT, CodecEvaluationSettings(speech=("talk/*",)))
    with pytest.raises(ConfigError, match="got neither"):
        judged_recordings(data, HELD_OUT, CodecEvaluationSettings())
    with pytest.raises(ConfigError, match=r"'evaluation.sounds': got 'x\*', which no audio file"):
        judged_recordings(data, HELD_OUT, CodecEvaluationSettings(sounds=("x*",)))


def test_a_study_is_kept_and_shown(data: Path, tmp_path: Path, codec: PublishedCodec) -> None:
    pytest.importorskip("pystoi", reason="pystoi is not installed: pip install -e '.[codec]'")
    from streamsplit.evaluation.codec_report import run_study

    settings = CodecSettings(
        data=HELD_OUT, evaluation=CodecEvaluationSettings(speech=("talk/9*",), sounds=("noise/9*",), times=False)
    )
    told: list[int] = []
    output = tmp_path / "out"
    study = run_study([codec], data, settings, output, "command", lambda done, total, name: told.append(done))
    assert told[-1] == 2 * len(study["rows"])
    by_name = {row["name"]: row for row in study["rows"]}
    assert by_name["Opus 12k"]["estoi"] > by_name["small 0.2k"]["estoi"]
    assert (by_name["Opus 12k"]["pesq_nb"] is not None) == has_pesq()
    assert by_name["Opus 12k"]["speech_mel_db"] < by_name["Opus 6k"]["speech_mel_db"]
    assert json.loads((output / "study.json").read_text())["meta"]["speech"] == ["talk/9.wav"]
    page = (output / "report.html").read_text()
    assert "Opus 12k" in page
    sources = [part.split('"')[0] for part in page.split('src="samples/')[1:]]
    assert len(sources) == 2 * (1 + len(study["rows"]))
    assert all((output / "samples" / source).is_file() for source in sources)
