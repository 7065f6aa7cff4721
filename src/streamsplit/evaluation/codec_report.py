"""`streamsplit codec evaluate`: runs the study, keeps it as JSON, and writes the page with sound to listen to."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import soundfile
from numpy.typing import NDArray

from streamsplit.evaluation import plots
from streamsplit.evaluation.codec_run import CodecSettings
from streamsplit.evaluation.codec_sounds import judged_recordings
from streamsplit.evaluation.codec_study import (
    RATE_HZ,
    Clip,
    as_dicts,
    contestants,
    encoder_times,
    measure_codec,
    onnx_times,
    read_clips,
    rows_markdown,
)
from streamsplit.evaluation.page import heading, paragraph, picture, section, table, write_page
from streamsplit.evaluation.provenance import machine, revision_of_code
from streamsplit.weights.codec_file import PublishedCodec

Floats = NDArray[np.float32]

_TO_HEAR = 2  # clips of each kind on the page
_DECIBELS = 80.0  # of the spectrograms' range
_COLUMNS = 4  # of spectrograms


def run_study(
    codecs: Sequence[PublishedCodec],
    root: Path,
    settings: CodecSettings,
    output: Path,
    command: str,
    progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Judges all contestants; writes study.json, results.md, samples/ and report.html, and gives what is in the JSON.

    Raises ConfigError as `judged_recordings`, MissingExtraError without pystoi.
    """
    speech, sounds = judged_recordings(root, settings.data, settings.evaluation)
    longest = settings.evaluation.longest_s
    clips = read_clips(speech, root, speech=True, longest_s=longest)
    clips += read_clips(sounds, root, speech=False, longest_s=longest)
    rivals, notes = contestants(codecs, settings.evaluation)
    done, total = 0, len(rivals) * len(clips)

    def tell(name: str) -> None:
        nonlocal done
        done += 1
        progress(done, total, name)

    shown = _shown(clips)
    rows, heard = [], {}
    for rival in rivals:
        row, made = measure_codec(rival, clips, tell)
        rows.append(row)
        heard[rival.name] = {clip.name: made[clip.name] for clip in shown}
    study: dict[str, Any] = {
        "rows": as_dicts(rows),
        "encoders": {
            codec.card["name"]: encoder_times(codec, clips[0].audio) | onnx_times(codec, clips[0].audio)
            for codec in (codecs if settings.evaluation.times else ())
        },
        "meta": {
            "command": command, "commit": revision_of_code(), "machine": machine(), "notes": notes,
            "speech": [clip.name for clip in clips if clip.speech],
            "sounds": [clip.name for clip in clips if not clip.speech], "longest_s": longest,
            "codecs": {codec.card["name"]: codec.model.model_id().hex() for codec in codecs},
        },
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    (output / "study.json").write_text(json.dumps(study, indent=1) + "\n", encoding="utf-8")
    (output / "results.md").write_text(rows_markdown(study["rows"]), encoding="utf-8")
    write_samples(shown, heard, output / "samples")
    write_codec_report(study, shown, heard, output / "report.html")
    return study


def write_samples(shown: Sequence[Clip], heard: Mapping[str, Mapping[str, Floats]], folder: Path) -> None:
    """The clips on the page as WAV files, the original and what every codec made of it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, clip in enumerate(shown):
        for name, audio in (("original", clip.audio), *((name, made[clip.name]) for name, made in heard.items())):
            soundfile.write(folder / _file(number, name), audio.clip(-1, 1), RATE_HZ, subtype="PCM_16")


def write_codec_report(
    study: Mapping[str, Any], shown: Sequence[Clip], heard: Mapping[str, Mapping[str, Floats]], path: Path
) -> Path:
    """The page of a study; the samples lie in a folder beside it."""
    meta = study["meta"]
    first = study["rows"][0]
    tiles = [(f"{first['speech_kbps'] or first['sound_kbps']:.2f} kbit/s", first["name"])]
    if first["estoi"] is not None:
        tiles.append((f"{first['estoi']:.3f}", "ESTOI on speakers that it was not trained on"))
    sub = f"{len(meta['speech'])} recordings of speech, {len(meta['sounds'])} of other sounds, none of them trained on"
    times = [
        [name, f"{1 / row['encode_rtf']:.0f}", f"{1 / row['encode_stream_rtf']:.0f}", f"{row['frame_ms']:.2f}",
         f"{row['onnx_frame_ms']:.2f}" if "onnx_frame_ms" in row else "-", f"{1 / row['decode_rtf']:.0f}"]
        for name, row in study["encoders"].items()
    ]  # fmt: skip
    header = (
        "codec",
        "encoding at once, x real time",
        "frame by frame, x real time",
        "ms a frame",
        "ms a frame, ONNX Runtime",
        "decoding, x real time",
    )
    parts = [
        heading("Codecs compared", sub, tiles),
        section("Figures", _rows_table(study["rows"]), paragraph(_EXPLAINED), *map(paragraph, meta["notes"])),
        *([section("Time", table(header, times), paragraph("Process time, one thread, torch."))] if times else []),
        section("To hear and see", *(_clip_part(number, clip, heard) for number, clip in enumerate(shown))),
        section("How it was measured", f"<pre>{html.escape(json.dumps(meta, indent=1))}</pre>"),
    ]
    return write_page(path, "Codecs compared", parts)


_EXPLAINED = (
    "ESTOI (intelligibility, 0 to 1) and PESQ (quality, 1 to 4.6) on speech; mel distance in dB, lower is better, on "
    "other sounds too. Bits are counted from the codes, packet headers aside. PESQ was not made for codecs that write "
    "new phases; it is given because everyone gives it."
)


def _rows_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [line.strip("|").split("|") for line in rows_markdown(rows).strip().splitlines()]
    return table([cell.strip() for cell in lines[0]], [[cell.strip() for cell in line] for line in lines[2:]])


def _shown(clips: Sequence[Clip]) -> list[Clip]:
    """A few clips of each kind, evenly spread."""
    chosen: list[Clip] = []
    for speech in (True, False):
        kind = [clip for clip in clips if clip.speech is speech]
        chosen += kind[:: max(1, len(kind) // _TO_HEAR)][:_TO_HEAR]
    return chosen


def _clip_part(number: int, clip: Clip, heard: Mapping[str, Mapping[str, Floats]]) -> str:
    sounds = {"original": clip.audio} | {name: made[clip.name] for name, made in heard.items()}
    players = "".join(
        f'<figure><audio controls preload="none" src="samples/{quote(_file(number, name))}"></audio>'
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
        for name in sounds
    )
    return f"<h3>{html.escape(clip.name)}</h3>{players}" + picture(spectrograms(sounds), f"Spectrograms of {clip.name}")


def spectrograms(sounds: Mapping[str, Floats]) -> Any:
    """A row of spectrograms, up to 8 kHz, 80 dB of range below the first one's peak."""
    from scipy.signal import stft

    rows = -(-len(sounds) // _COLUMNS)
    figure, grid = plots.axes_of(11.0, 1.7 * rows, rows=rows, columns=_COLUMNS)
    top: float | None = None
    for axes, (name, audio) in zip(grid, sounds.items(), strict=False):
        levels = 20 * np.log10(np.abs(stft(audio, RATE_HZ, nperseg=512, noverlap=384)[2]) + 1e-9)
        top = float(levels.max()) if top is None else top
        axes.imshow(
            levels, origin="lower", aspect="auto", cmap="magma", vmin=top - _DECIBELS, vmax=top,
            extent=(0, len(audio) / RATE_HZ, 0, RATE_HZ / 2000),
        )  # fmt: skip
        axes.set_title(name, fontsize=8)
        axes.grid(False)
        axes.tick_params(labelsize=6)
    for axes in grid[len(sounds) :]:
        axes.set_visible(False)
    return figure


def _file(number: int, name: str) -> str:
    return f"{number}-{name.replace(' ', '_')}.wav"
