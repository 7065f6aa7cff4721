"""Loss on an Opus stream: the pattern is as asked for, what is received is what a voice client would play."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import pytest

from streamsplit.audio.synth import render_scene
from streamsplit.cli.main import main
from streamsplit.codec.opus_stream import OpusDecoderStream, OpusEncoderStream, OpusSettings
from streamsplit.evaluation.opus_loss import lost_packets, receive


def packets(settings: OpusSettings) -> list[bytes]:
    audio = render_scene("conversation", 4.0, np.random.default_rng(1)).clip(-1, 1).astype(np.float32)
    encoder = OpusEncoderStream(settings)
    return [encoder.encode(audio[at : at + 320]) for at in range(0, len(audio), 320)]


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_losses_are_as_frequent_and_as_long_as_asked_for(share: float) -> None:
    lost = lost_packets(200_000, share, np.random.default_rng(0))
    runs = [len(list(run)) for bad, run in groupby(lost.tolist()) if bad]
    assert lost.mean() == pytest.approx(share, rel=0.05) and np.mean(runs) == pytest.approx(2.0, rel=0.05)
    assert not lost_packets(100, 0.0, np.random.default_rng(0)).any()


def test_without_loss_every_receiver_hears_what_the_decoder_says() -> None:
    settings = OpusSettings(dtx=False)
    stream = packets(settings)
    decoder = OpusDecoderStream()
    expected = np.concatenate([decoder.decode(packet) for packet in stream])
    for receiver in ("silence", "concealed", "recovered"):
        heard = receive(stream, np.zeros(len(stream), bool), settings, receiver)
        np.testing.assert_array_equal(heard, expected)


def test_lost_frames_are_silent_concealed_or_recovered_and_the_sound_keeps_its_length() -> None:
    settings = OpusSettings(dtx=False, fec=True, expected_loss=0.2)
    stream = packets(settings)
    lost = np.zeros(len(stream), bool)
    lost[[30, 60, 61]] = True
    heard = {name: receive(stream, lost, settings, name) for name in ("silence", "concealed", "recovered")}
    assert {len(sound) for sound in heard.values()} == {len(stream) * 320}
    frames = {name: sound.reshape(-1, 320) for name, sound in heard.items()}
    assert not frames["silence"][[30, 60, 61]].any() and frames["concealed"][30].any()
    decoder = OpusDecoderStream()
    for packet in stream[:30]:
        decoder.decode(packet)
    np.testing.assert_array_equal(frames["recovered"][30], decoder.recover(stream[31]))


def test_the_command_says_what_is_wrong_in_a_line(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    import soundfile

    short = tmp_path / "short.wav"
    soundfile.write(short, np.zeros(800, np.float32), 16_000)
    for words, code, text in (
        (["--input", str(short)], 1, "0.05 s of sound"),
        (["--input", str(tmp_path / "none.wav")], 1, "none.wav"),
        (["--input", str(short), "--loss", "5,x"], 2, "got 'x'"),
        (["--input", str(short), "--bitrate", "100"], 2, "bitrate_bps"),
        (["--input", str(short), "--frame-ms", "30"], 2, "frame_ms"),
    ):
        assert main(["opus-test", *words]) == code
        shown = capsys.readouterr().err
        assert text in shown and shown.count("\n") == 1, shown


def test_the_command_prints_a_row_for_every_receiver(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pystoi")
    pytest.importorskip("pesq")
    import soundfile

    voice = render_scene("conversation", 4.0, np.random.default_rng(1)).clip(-1, 1).astype(np.float32)
    soundfile.write(tmp_path / "in.wav", voice, 16_000)
    out = tmp_path / "out.opus"
    assert main(["opus-test", "--input", str(tmp_path / "in.wav"), "--loss", "20", "--output", str(out)]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("silence", "concealed", "recovered")) and out.stat().st_size > 1_000
