"""What `streamsplit pretrain` hears in folders: whose voice, which folds, how much; and bad folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation.pretraining_run import hear_clips, hear_speech, measure

RATE = 16_000


def sound(path: Path, seconds: float, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE))
    soundfile.write(path, np.cumsum(noise) / 20 if seed % 2 else noise, RATE)


def test_in_one_folder_the_name_says_who_speaks(tmp_path: Path) -> None:
    for seed, name in enumerate(("103-1-0", "103-2-0", "204_5")):
        sound(tmp_path / f"{name}.wav", 2.0, seed)
    heard = hear_speech(tmp_path)
    part = heard.recordings
    assert part.windows.shape[1:] == (128, 100) and part.windows.dtype == np.float16
    assert len(set(part.recordings.tolist())) == 3 and len(set(part.voices.tolist())) == 2
    by_recording = [set(part.voices[part.recordings == number].tolist()) for number in range(3)]
    assert by_recording[0] == by_recording[1] != by_recording[2]
    assert heard.hours == pytest.approx(6.0 / 3600, rel=0.15) and "2 speakers" in heard.about


def test_in_folders_the_folder_says_who_speaks(tmp_path: Path) -> None:
    for seed, name in enumerate(("anna/1", "anna/2", "ben/1")):
        sound(tmp_path / f"{name}.wav", 1.5, seed)
    part = hear_speech(tmp_path).recordings
    assert len(set(part.voices.tolist())) == 2


def test_only_the_chosen_folds_are_heard_and_labels_are_not_kept(tmp_path: Path) -> None:
    for seed, name in enumerate(("dog/1-10-A", "dog/2-11-A", "rain/1-20-A", "rain/2-21-A")):
        sound(tmp_path / f"{name}.wav", 2.0, seed)
    every, first = hear_clips(tmp_path), hear_clips(tmp_path, (1,))
    assert len(set(every.recordings.recordings.tolist())) == 4
    assert len(set(first.recordings.recordings.tolist())) == 2 and "folds 1" in first.about
    assert set(first.recordings.voices.tolist()) == {0}
    with pytest.raises(ConfigError, match=r"folds \[7\], expected some of \[1, 2\]"):
        hear_clips(tmp_path, (7,))


def test_silent_clips_are_left_out_and_counted(tmp_path: Path) -> None:
    for seed, name in enumerate(("dog/a", "dog/b", "rain/a")):
        sound(tmp_path / f"{name}.wav", 2.0, seed)
    soundfile.write(tmp_path / "rain" / "b.wav", np.zeros(2 * RATE), RATE)
    heard = hear_clips(tmp_path)
    assert len(set(heard.recordings.recordings.tolist())) == 3
    assert "1 left out of 4" in heard.notes[0]


@pytest.mark.parametrize("hear", [hear_clips, hear_speech])
def test_a_folder_without_sound_is_one_clear_error(tmp_path: Path, hear) -> None:
    with pytest.raises(AudioError, match="got no audio"):
        hear(tmp_path)


def test_measuring_leaves_every_speaker_out_in_turn(tmp_path: Path) -> None:
    for digit in range(2):
        for speaker in ("anna", "ben", "cleo"):
            for take in range(3):
                sound(tmp_path / "fsdd" / f"{digit}_{speaker}_{take}.wav", 0.5, 2 * (take + 7) + digit)
    figures = measure(make_encoder(EncoderSettings(width=0.25, embedding_dim=32)), tmp_path)
    each = [figures[f"digits_left_out_{name}_probe"] for name in ("anna", "ben", "cleo")]
    assert figures["digits_mean_probe"] == pytest.approx(np.mean(each), abs=1e-3)
    assert figures["digits_mean_probe"] > 0.9, "white and brown noise are easily told apart"
    with pytest.raises(ConfigError, match="neither esc10/ nor fsdd/"):
        measure(make_encoder(EncoderSettings(width=0.25, embedding_dim=32)), tmp_path / "fsdd")
