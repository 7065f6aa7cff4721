"""`streamsplit codec`: train, stop, go on, encode and decode, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamsplit.audio.synth import render_scene
from streamsplit.cli.main import main

CONFIG = """
codec: {front: logmel, strides: [160, 2], bands: 16, D: 16, codebook_dim: 6, num_quantizers: 2, codebook_size: 16,
  decoder: spectral, decoder_width: 24, decoder_blocks: 1}
training: {steps: STEPS, batch: 2, crop_s: 0.3, unquantized_steps: 1, health_steps: 2, least_rank: 1.0}
data: {held_out: ["b/*"]}
"""


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a/one.wav", "a/two.flac", "b/three.wav"):
        path = tmp_path / "sounds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, 0.3 * render_scene("music", 1.0, rng), 16_000)
    (tmp_path / "sounds" / "b").rename(tmp_path / "elsewhere")
    (tmp_path / "sounds" / "b").symlink_to(tmp_path / "elsewhere")  # data sets are often put together by links
    return tmp_path / "sounds"


def train(folder: Path, sounds: Path, steps: int, *more: str) -> int:
    config = folder / f"codec{steps}.yaml"
    config.write_text(CONFIG.replace("STEPS", "6"))
    out = str(folder / "run")
    return main(["codec", "train", "--config", str(config), "--data", str(sounds), "--output-dir", out, *more])


def test_a_codec_is_trained_and_files_go_there_and_back(
    tmp_path: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, sounds, 6) == 0
    assert "MB after 6 steps" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "run/figures.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert float(rows[-1]["held_out_mel_db"]) > 0
    codec = str(tmp_path / "run/codec.safetensors")
    assert main(["codec", "info", "--codec", codec, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["clock"]["bitrate_bps"] == 400.0
    assert told["card"]["data"] == "2 recordings of sounds, 1 held out: b/*"
    coded, back = tmp_path / "x.tsc", tmp_path / "x.wav"
    assert main(["codec", "encode", "--codec", codec, str(sounds / "b/three.wav"), str(coded)]) == 0
    assert "58 bytes for 1.00 s" in capsys.readouterr().out  # header 8, 50 frames of 8 bits
    assert main(["codec", "decode", "--codec", codec, str(coded), str(back)]) == 0
    audio, rate = soundfile.read(back)
    assert (len(audio), rate) == (16_000, 16_000)
    assert (
        main(["codec", "encode", "--codec", codec, "--quantizers", "1", str(sounds / "b/three.wav"), str(coded)]) == 0
    )
    assert "33 bytes" in capsys.readouterr().out


def test_a_stopped_training_goes_on_to_the_same_codec(tmp_path: Path, sounds: Path) -> None:
    assert train(tmp_path, sounds, 6) == 0
    expected = (tmp_path / "run/checkpoint.safetensors").read_bytes()
    from streamsplit.refinement.codec_training import CodecTraining

    stop = CodecTraining.step

    def interrupted(self: CodecTraining) -> object:
        if self.step_number == 5:
            raise KeyboardInterrupt
        return stop(self)

    other = tmp_path / "other"
    other.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CodecTraining, "step", interrupted)
        assert train(other, sounds, 6) == 130
    assert train(other, sounds, 6) == 2  # holds a training already
    assert train(other, sounds, 6, "--resume") == 0
    assert (other / "run/checkpoint.safetensors").read_bytes() == expected
    rows = list(csv.DictReader((other / "run/figures.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    seconds = [float(row["process_s"]) for row in rows]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    assert 1 <= float(rows[-1]["least_perplexity"]) <= float(rows[-1]["perplexity"]) <= 16


def test_figures_of_a_version_without_process_seconds_go_on(tmp_path: Path) -> None:
    from streamsplit.evaluation.codec_run import COLUMNS, _figures
    from streamsplit.refinement.codec_training import CodecHealth, CodecStep

    path = tmp_path / "figures.csv"
    path.write_text(",".join(COLUMNS[:-2]) + "\n2," + ",".join("1" * 11) + "\n4," + ",".join("1" * 11) + "\n")
    with _figures(path, 2) as write:
        write([CodecStep(4, 2.0, 1.0, 1.0, 1.0, 1.0, 0)], CodecHealth(4, 2.0, 3.0, 1.0, 5.0, (7.0, 9.0)))
    old, new = csv.DictReader(path.open())
    assert (old["step"], old["mel_db"], old["process_s"]) == ("2", "1", "nan")
    assert (new["step"], new["perplexity"], new["least_perplexity"], new["process_s"]) == ("4", "8", "7", "nan")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("b/*=nosuch/*", "which no audio file"),
        ("b/*=*/*", "all of them held out"),
        ("steps: 6=stepz: 6", "did you mean"),
    ],
)
def test_settings_that_cannot_be_are_one_line(
    tmp_path: Path, sounds: Path, change: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "codec.yaml"
    config.write_text(CONFIG.replace("STEPS", "6").replace(*change.split("=")))
    assert main(["codec", "train", "--config", str(config), "--data", str(sounds), "--output-dir", str(tmp_path)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert message in told[-1]
    assert told[-1].startswith("streamsplit: error: ")


def test_a_damaged_packet_is_one_warning_and_no_frames_are_an_empty_file(
    tmp_path: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from streamsplit.codec.tinystream.bitstream import pack
    from streamsplit.codec.tinystream.coded_file import pack_file

    assert train(tmp_path, sounds, 6) == 0
    codec, coded, back = str(tmp_path / "run/codec.safetensors"), tmp_path / "x.tsc", tmp_path / "x.wav"
    capsys.readouterr()
    assert main(["codec", "info", "--codec", codec, "--json"]) == 0
    model_id = bytes.fromhex(json.loads(capsys.readouterr().out)["model_id"])[:4]
    damaged = bytearray(pack_file(np.ones((2, 15), int), 4, model_id, 5))
    damaged[len(damaged) // 3] = 9  # the second packet's version
    coded.write_bytes(damaged)
    assert main(["codec", "decode", "--codec", codec, str(coded), str(back), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out) == {"seconds": 0.3, "frames": 15, "lost_packets": 1, "concealed_frames": 5}
    (warning,) = told.err.strip().splitlines()
    assert "1 packets cannot be read, 5 frames of 15 concealed" in warning
    coded.write_bytes(pack(np.zeros((2, 0), int), 4, model_id))
    assert main(["codec", "decode", "--codec", codec, str(coded), str(back)]) == 0
    assert soundfile.info(back).frames == 0
    coded.write_bytes(pack(np.zeros((2, 3), int), 9, model_id))
    assert main(["codec", "decode", "--codec", codec, str(coded), str(back)]) == 1
    assert "got 2 quantizers of 9 bits an index, expected 1..2 of 4" in capsys.readouterr().err
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16_000)
    assert main(["codec", "encode", "--codec", codec, str(tmp_path / "empty.wav"), str(coded)]) == 1
    assert "empty.wav" in capsys.readouterr().err


def test_files_that_are_no_codec_or_bitstream_are_one_line(
    tmp_path: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, sounds, 6) == 0
    codec, bad = str(tmp_path / "run/codec.safetensors"), tmp_path / "bad.tsc"
    bad.write_bytes(b"\1\2\3")
    for arguments, message in (
        (["decode", "--codec", codec, str(bad), str(tmp_path / "x.wav")], "got 3 bytes, expected at least 8"),
        (["decode", "--codec", codec, str(bad), str(tmp_path / "x.mp3")], "expected a .wav file"),
        (["decode", "--codec", "nosuch", str(bad), str(tmp_path / "x.wav")], "expected a packaged codec"),
        (["encode", "--codec", codec, str(bad), str(tmp_path / "x.tsc")], "bad.tsc"),
        (["encode", "--codec", codec, "--quantizers", "9", str(sounds / "a/one.wav"), "x"], "expected 1..2"),
    ):
        capsys.readouterr()
        assert main(["codec", *arguments]) != 0
        error = capsys.readouterr().err.strip()
        assert message in error
        assert "\n" not in error


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "configs/codec").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_configs_that_come_along_are_the_named_sizes_encoders(path: Path) -> None:
    from streamsplit.codec.tinystream.settings import SIZES
    from streamsplit.config import load_settings
    from streamsplit.evaluation.codec_run import CodecSettings

    codec, size = (
        load_settings(path, CodecSettings).codec,
        SIZES[path.stem.removesuffix("_decoder").removesuffix("_adversarial")],
    )
    decoder = {name: value for name, value in size.as_dict().items() if name.startswith("decoder")}
    assert codec.replace(**decoder) == size


def test_the_export_and_integer_codes_are_those_of_the_published_file(
    tmp_path: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, sounds, 6) == 0
    codec, out = str(tmp_path / "run/codec.safetensors"), tmp_path / "model"
    capsys.readouterr()
    assert main(["codec", "export", "--codec", codec, "--output-dir", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["stored_bytes"] < 10_000
    assert told["ram_bytes"] < 20_000
    assert sorted(path.name for path in out.iterdir()) == [
        "tinystream_golden.h", "tinystream_golden.json", "tinystream_model.c", "tinystream_model.h",
    ]  # fmt: skip
    whole, real = tmp_path / "whole.tsc", tmp_path / "real.tsc"
    arguments = ["codec", "encode", "--codec", codec, str(sounds / "b/three.wav")]
    assert main([*arguments, str(whole), "--integer"]) == 0
    assert main([*arguments, str(real)]) == 0
    assert whole.stat().st_size == real.stat().st_size == 58


def test_a_training_can_begin_with_a_published_codec(
    tmp_path: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, sounds, 6) == 0
    codec = str(tmp_path / "run/codec.safetensors")
    further = tmp_path / "further.yaml"
    text = CONFIG.replace("STEPS", "1").replace("unquantized_steps: 1", "unquantized_steps: 0, learning_rate: 1.0e-7")
    further.write_text(text)
    arguments = ["codec", "train", "--config", str(further), "--data", str(sounds), "--start", codec, "--output-dir"]
    assert main([*arguments, str(tmp_path / "further")]) == 0
    rows = [list(csv.DictReader((tmp_path / run / "figures.csv").open()))[-1] for run in ("run", "further")]
    before, after = (float(row["held_out_mel_db_unquantized"]) for row in rows)
    assert after == pytest.approx(before, rel=0.02)  # half precision, and one tiny step
    further.write_text(text.replace("D: 16", "D: 18"))
    assert main([*arguments, str(tmp_path / "other")]) == 2
    assert "got a codec with D 16, expected 18" in capsys.readouterr().err


def test_a_decoder_is_trained_for_codes_that_stay_as_they_are(
    tmp_path: Path, sounds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, sounds, 6) == 0
    first, second = str(tmp_path / "run/codec.safetensors"), str(tmp_path / "wider/codec.safetensors")
    config = tmp_path / "wider.yaml"
    text = CONFIG.replace("STEPS", "3").replace("decoder_width: 24", "decoder_width: 32, decoder_spectra: 2")
    frozen = text.replace("unquantized_steps: 1", "unquantized_steps: 0, encoder_learns: false")
    arguments = [
        "codec",
        "train",
        "--config",
        str(config),
        "--data",
        str(sounds),
        "--output-dir",
        str(tmp_path / "wider"),
    ]
    for wrong, start in ((text.replace("batch", "encoder_learns: false, batch"), ["--start", first]), (frozen, [])):
        config.write_text(wrong)
        assert main([*arguments, *start]) == 2
        assert "expected a codec to start with (--start) and unquantized_steps 0" in capsys.readouterr().err
    config.write_text(frozen)
    assert main([*arguments, "--start", first]) == 0
    told = []
    for codec in (first, second):
        capsys.readouterr()
        assert main(["codec", "info", "--codec", codec, "--json"]) == 0
        told.append(json.loads(capsys.readouterr().out))
    assert told[0]["model_id"] == told[1]["model_id"]
    assert told[0]["parameters"]["decoder"] < told[1]["parameters"]["decoder"]
    coded = [tmp_path / name for name in ("a.tsc", "b.tsc")]
    for codec, path in zip((first, second), coded, strict=True):
        assert main(["codec", "encode", "--codec", codec, str(sounds / "b/three.wav"), str(path)]) == 0
    assert coded[0].read_bytes() == coded[1].read_bytes()
    assert main(["codec", "decode", "--codec", second, str(coded[0]), str(tmp_path / "x.wav")]) == 0
