"""Long recordings: segments cut without loading a file, labels by majority, sessions that never straddle a split."""

from __future__ import annotations

import tracemalloc
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sound_files import write_tone

from streamsplit.audio.resample import resample
from streamsplit.errors import AudioError, ConfigError
from streamsplit.evaluation.data.manifest import load_prepared, read_clip
from streamsplit.evaluation.data.prepare import prepare
from streamsplit.evaluation.data.settings import PrepareSettings
from streamsplit.evaluation.data.stream import directly_follows

RATE_HZ = 4000
HEAD = "recording,start_s,annotator_1,annotator_2,annotator_3"


def settings(source: Path, **options) -> PrepareSettings:
    return PrepareSettings(source=str(source), **options)


def record(root: Path, name: str, seconds: float, seed: int = 0) -> np.ndarray:
    samples = np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE_HZ)).astype(np.float32)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")
    return soundfile.read(path, dtype="float32")[0]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    root = tmp_path / "recordings"
    rows = [HEAD]
    for number in range(5):
        record(root, f"day{number}.{'wav' if number % 2 else 'flac'}", 45.0, number)
        for place, votes in enumerate(["talk,talk,talk", "talk,talk,door", "door,door,door", "a,b,c"]):
            rows.append(f"day{number},{10 * place},{votes}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    return root


def test_segments_have_the_majoritys_label_and_the_rest_is_counted(source, tmp_path):
    card = prepare(settings(source), tmp_path / "out")
    clips = load_prepared(tmp_path / "out")
    assert card["kind"] == "ondevice" and Counter(clip.label for clip in clips) == {"talk": 10, "door": 5}
    assert {reason: held["count"] for reason, held in card["left_out"].items()} == {"no majority": 5}
    assert card["facts"]["annotators"] == 3 and card["facts"]["segment_s"] == 10.0
    assert card["hours"] == pytest.approx(150 / 3600, abs=1e-4)


def test_the_agreement_in_the_card_is_that_of_a_slow_count(source, tmp_path):
    card = prepare(settings(source), tmp_path / "out")
    rows = [["talk"] * 3, ["talk", "talk", "door"], ["door"] * 3, ["a", "b", "c"]]
    pairs = np.mean([r[i] == r[j] for r in rows for i in range(3) for j in range(3) if i != j])
    flat = [vote for row in rows for vote in row]
    chance = np.mean([one == other for one in flat for other in flat])
    assert card["facts"]["fleiss kappa"] == pytest.approx((pairs - chance) / (1 - chance), abs=1e-4)


def test_a_segment_is_exactly_its_piece_of_the_recording(source, tmp_path):
    prepare(settings(source), tmp_path / "out")
    clip = next(c for c in load_prepared(tmp_path / "out") if c.path.name == "day1.wav" and c.start_s == 20.0)
    whole = soundfile.read(clip.path, dtype="float32")[0]
    piece = whole[20 * RATE_HZ : 30 * RATE_HZ]
    assert np.array_equal(read_clip(clip, RATE_HZ), piece)
    assert np.array_equal(read_clip(clip), resample(piece, RATE_HZ, 16_000))


def test_a_session_is_the_recording_or_its_folder_and_is_never_in_two_parts(source, tmp_path):
    prepare(settings(source), tmp_path / "flat")
    assert {clip.session for clip in load_prepared(tmp_path / "flat")} == {f"day{number}" for number in range(5)}
    nested, rows = tmp_path / "nested", [HEAD]
    for session in "abcd":
        for number in range(2):
            record(nested, f"{session}/{number}.wav", 25.0)
            rows += [f"{session}/{number}.wav,0,x,x,x", f"{session}/{number}.wav,10,y,y,y"]
    (nested / "labels.csv").write_text("\n".join(rows) + "\n")
    prepare(settings(nested), tmp_path / "out")
    parts = defaultdict(set)
    for clip in load_prepared(tmp_path / "out"):
        parts[clip.session].add(clip.part)
    assert set(parts) == set("abcd") and all(len(part) == 1 for part in parts.values())


def test_a_table_may_number_the_segments(source, tmp_path):
    rows = ["recording,segment,annotator_1,annotator_2,annotator_3"]
    rows += [
        f"day{number},{segment},{'ab'[segment % 2]},{'ab'[segment % 2]}," for number in range(4) for segment in range(8)
    ]
    (source / "labels.csv").write_text("\n".join(rows) + "\n")
    card = prepare(settings(source, seconds=5.0), tmp_path / "out")
    clips = load_prepared(tmp_path / "out")
    assert card["clips"] == 32 and {clip.duration_s for clip in clips} == {5.0}
    assert sorted({clip.start_s for clip in clips}) == [5.0 * segment for segment in range(8)]
    assert card["left_out"]["recording without a row in the table"]["examples"] == ["day4.flac"]
    assert card["facts"]["fleiss kappa"] is None  # nobody voted three times
    follows = directly_follows(clips)
    assert sum(before < 0 for before in follows) == 4


def test_what_the_recording_does_not_hold_is_left_out(source, tmp_path):
    with (source / "labels.csv").open("a") as file:
        file.write("day0,40,talk,talk,talk\nnight,0,talk,talk,talk\n")
    write_tone(source / "quiet.wav", 12.0, rate_hz=RATE_HZ, level=0.0)
    with (source / "labels.csv").open("a") as file:
        file.write("quiet,0,talk,talk,talk\n")
    card = prepare(settings(source), tmp_path / "out")
    assert {reason: held["examples"] for reason, held in card["left_out"].items() if reason != "no majority"} == {
        "the recording ends before the segment does": ["day0.flac at 40 s"], "no such recording": ["night at 0 s"],
        "silent (peak below 0.0001)": ["quiet.wav at 0 s"],
    }  # fmt: skip


def test_a_long_recording_is_never_whole_in_memory(tmp_path):
    root = tmp_path / "long"
    for number in range(3):
        record(root, f"{number}.wav", 1500.0)
    rows = [f"{number},{start},{'ab'[start % 20 // 10]}" for number in range(3) for start in range(0, 1500, 10)]
    (root / "labels.csv").write_text("recording,start_s,annotator_1\n" + "\n".join(rows) + "\n")
    tracemalloc.start()
    try:
        card = prepare(settings(root), tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert card["clips"] == 450
    assert peak < 6e6 / 2  # a recording is 1500 s * 4000 * 4 bytes = 24 MB


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("recording,start_s,label\nday0,0,a\n", "no column annotator_1"),
        ("name,start_s,annotator_1\nday0,0,a\n", "expected also recording"),
        ("recording,start_s,annotator_1\nday0,soon,a\n", "labels.csv:2: got start_s 'soon'"),
        ("recording,start_s,annotator_1\nday0,-1,a\n", "got start_s '-1'"),
        ("recording,annotator_1\nday0,a\n", "got no start_s and segment ''"),
        ("recording,start_s,annotator_1\nday0,0,a\nday0.flac,0,b\n", "labels.csv:3: got a second row"),
        ("recording,start_s,annotator_1\n", "no row under the header"),
        ("recording,start_s,annotator_1\nday0,0\n", "got 2 values, expected 3"),
    ],
)
def test_a_table_that_is_none_is_refused_with_its_line(source, tmp_path, table, says):
    (source / "labels.csv").write_text(table)
    with pytest.raises(ConfigError, match=says):
        prepare(settings(source, labels=str(source / "labels.csv")), tmp_path / "out")


def test_a_name_of_two_recordings_needs_its_folder(tmp_path):
    root = tmp_path / "two"
    for session in "ab":
        record(root, f"{session}/take.wav", 12.0)
    (root / "labels.csv").write_text(f"{HEAD}\ntake,0,x,x,x\n")
    with pytest.raises(ConfigError, match="'take', which 2 files are called"):
        prepare(settings(root), tmp_path / "out")


def test_two_sessions_are_too_few_for_three_parts(tmp_path):
    root = tmp_path / "two"
    for name in "ab":
        record(root, f"{name}.wav", 25.0)
    (root / "labels.csv").write_text(f"{HEAD}\na,0,x,x,x\na,10,y,y,y\nb,0,x,x,x\n")
    with pytest.raises(AudioError, match="2 sessions"):
        prepare(settings(root), tmp_path / "out")


def test_segments_that_share_sound_or_have_another_length_are_refused(source, tmp_path):
    table = source / "labels.csv"
    text = table.read_text()
    table.write_text(text + "day0,5,door,door,door\n")
    with pytest.raises(ConfigError, match=r"segments of day0.flac at 0 s and at 5 s, expected 10 s between two"):
        prepare(settings(source), tmp_path / "out")
    rows = text.splitlines()
    table.write_text("\n".join([rows[0] + ",end_s", *(f"{row},{float(row.split(',')[1]) + 10}" for row in rows[1:])]))
    prepare(settings(source), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"got a segment of 10 s, expected 5 s \(--seconds\)"):
        prepare(settings(source, seconds=5.0), tmp_path / "other")
