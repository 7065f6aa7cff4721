"""Codecs beside each other on held-out sound: intelligibility, quality, spectral distance, bits and processor time."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from streamsplit.audio.files import read_audio
from streamsplit.codec.tinystream.losses import MelDistance
from streamsplit.codec.tinystream.streams import EncoderStream
from streamsplit.errors import ConfigError, MissingExtraError
from streamsplit.evaluation.codec_rivals import CODEC2_MODES, OPUS_BPS, Codec, codec2, opus, tinystream
from streamsplit.evaluation.codec_sounds import CodecEvaluationSettings
from streamsplit.export.codec_onnx import OnnxStream, export_streaming
from streamsplit.weights.codec_file import PublishedCodec

Floats = NDArray[np.float32]

RATE_HZ = 16_000
_TIMED_S = 10.0


class Clip(NamedTuple):
    """A held-out sound."""

    name: str
    audio: Floats
    speech: bool


@dataclass(frozen=True)
class CodecRow:
    """A codec's figures; means over clips, nan where a figure could not be measured."""

    name: str
    about: str
    speech_kbps: float
    sound_kbps: float
    estoi: float
    pesq_nb: float
    pesq_wb: float
    speech_mel_db: float
    sound_mel_db: float
    estoi_error: float  # standard error over clips


def read_clips(paths: Sequence[Path], root: Path, *, speech: bool, longest_s: float) -> list[Clip]:
    """The beginnings of recordings, as 16 kHz mono."""
    longest = round(longest_s * RATE_HZ)
    return [Clip(path.relative_to(root).as_posix(), read_audio(path, RATE_HZ)[:longest], speech) for path in paths]


def contestants(
    codecs: Sequence[PublishedCodec], settings: CodecEvaluationSettings | None = None
) -> tuple[list[Codec], list[str]]:
    """Each codec with all quantizers, half of them and one, and as the settings say; Opus and Codec2; what is missing.

    Raises ConfigError for a codec at another sample rate, MissingExtraError as `tinystream`.
    """
    settings = settings or CodecEvaluationSettings()
    rows: list[Codec] = []
    notes: list[str] = []
    if not has_pesq():
        notes.append("PESQ left out: pesq is not installed (pip install -e '.[codec]', which needs a C compiler)")
    for codec in codecs:
        if codec.model.settings.sample_rate != RATE_HZ:
            raise ConfigError(f"got a codec at {codec.model.settings.sample_rate} Hz, expected {RATE_HZ} to compare it")
        every = codec.model.settings.num_quantizers
        rows += [tinystream(codec, count) for count in dict.fromkeys((every, (every + 1) // 2, 1))]
        rows += [tinystream(codec, form=form) for form in settings.forms]
        rows += [tinystream(codec, lost=lost) for lost in settings.lost]
    if settings.alone:
        return rows, notes
    rows += [opus(bitrate) for bitrate in OPUS_BPS]
    for mode in CODEC2_MODES:
        made = codec2(mode)
        if made is None:
            notes.append(f"Codec2 {mode} left out: c2enc and c2dec are not installed (Debian: codec2)")
        else:
            rows.append(made)
    return rows, notes


def measure_codec(
    codec: Codec, clips: Sequence[Clip], tell: Callable[[str], None]
) -> tuple[CodecRow, dict[str, Floats]]:
    """A codec's figures on all clips, and what it made of each, by name.

    Raises MissingExtraError without pystoi.
    """
    distance = MelDistance(RATE_HZ)
    heard: dict[str, Floats] = {}
    figures: dict[str, list[float]] = {name: [] for name in ("estoi", "nb", "wb", "speech", "sound")}
    coded = {True: [0, 0.0], False: [0, 0.0]}
    for clip in clips:
        result = codec.code(clip.audio, clip.speech)
        heard[clip.name] = result.audio
        coded[clip.speech][0] += result.coded_bytes
        coded[clip.speech][1] += len(clip.audio) / RATE_HZ
        pair = (torch.from_numpy(np.ascontiguousarray(x))[None, None] for x in (result.audio, clip.audio))
        figures["speech" if clip.speech else "sound"].append(distance(*pair).item())
        if clip.speech:
            for name, value in speech_quality(clip.audio, result.audio).items():
                figures[name].append(value)
        tell(codec.name)
    means = {name: float(np.mean(values)) if values else float("nan") for name, values in figures.items()}
    error = float(np.std(figures["estoi"], ddof=1) / len(figures["estoi"]) ** 0.5) if len(figures["estoi"]) > 1 else 0.0
    kbps = {kind: 8e-3 * size / seconds if seconds else float("nan") for kind, (size, seconds) in coded.items()}
    return CodecRow(
        codec.name, codec.about, kbps[True], kbps[False], means["estoi"], means["nb"], means["wb"], means["speech"],
        means["sound"], error,
    ), heard  # fmt: skip


def speech_quality(reference: Floats, decoded: Floats) -> dict[str, float]:
    """ESTOI (Jensen and Taal 2016) and PESQ, narrow and wide band (ITU-T P.862, P.862.2).

    PESQ is nan where it hears no speech, and where pesq is not installed. Raises MissingExtraError without pystoi.
    """
    try:
        from pystoi import stoi
    except ImportError as error:
        raise MissingExtraError("judging speech", "codec", str(error)) from None
    found = {"estoi": float(stoi(reference, decoded, RATE_HZ, extended=True)), "nb": float("nan"), "wb": float("nan")}
    if not has_pesq():
        return found
    from pesq import NoUtterancesError, pesq
    from soxr import resample

    try:
        narrow = [resample(x, RATE_HZ, 8_000) for x in (reference, decoded)]
        found |= {"nb": float(pesq(8_000, *narrow, "nb")), "wb": float(pesq(RATE_HZ, reference, decoded, "wb"))}
    except NoUtterancesError:
        pass  # stays nan, and makes the mean nan: a codec without speech in it has no quality
    return found


def has_pesq() -> bool:
    """Whether pesq is installed: it comes as source, and needs a C compiler."""
    return importlib.util.find_spec("pesq") is not None


def encoder_times(codec: PublishedCodec, audio: Floats) -> dict[str, float]:
    """Process seconds per second of sound with one thread, at once and frame by frame, and a frame's milliseconds."""
    torch.set_num_threads(1)
    model = codec.model
    audio = np.tile(audio, 1 + round(_TIMED_S * RATE_HZ) // len(audio))[: round(_TIMED_S * RATE_HZ)]
    whole = torch.from_numpy(audio)[None, None]
    with torch.no_grad():
        at_once = _timed(lambda: model.encode(whole)) / _TIMED_S
        stream, hop = EncoderStream(model), model.settings.hop
        frames = range(0, len(audio) - hop + 1, hop)
        by_frame = _timed(lambda: [stream.push(audio[at : at + hop]) for at in frames])
        indices = model.encode(whole)
        decoding = _timed(lambda: model.decode(indices)) / _TIMED_S
    return {
        "encode_rtf": at_once, "encode_stream_rtf": by_frame / _TIMED_S, "frame_ms": 1000 * by_frame / len(frames),
        "decode_rtf": decoding,
    }  # fmt: skip


def onnx_times(codec: PublishedCodec, audio: Floats) -> dict[str, float]:
    """Milliseconds of a frame in ONNX Runtime, one thread; empty without the extra 'onnx'."""
    try:
        stream = OnnxStream(export_streaming(codec.model))
    except MissingExtraError:
        return {}
    hop = codec.model.settings.hop
    frames = audio[: len(audio) // hop * hop].reshape(-1, hop)
    return {"onnx_frame_ms": 1000 * _timed(lambda: [stream.push(frame) for frame in frames]) / len(frames)}


def _timed(work: Callable[[], object]) -> float:
    """Process seconds of the second of two runs."""
    work()
    started = time.process_time()
    work()
    return time.process_time() - started


def as_dicts(rows: Sequence[CodecRow]) -> list[dict[str, Any]]:
    """Rows for JSON; nan becomes None."""
    return [
        {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in asdict(row).items()}
        for row in rows
    ]


def rows_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for docs."""
    lines = [
        "| codec | kbit/s, speech | ESTOI | PESQ-NB | PESQ-WB | mel, speech | kbit/s, sounds | mel, sounds |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [row["name"]]
        for name, digits in (
            ("speech_kbps", 2), ("estoi", 3), ("pesq_nb", 2), ("pesq_wb", 2), ("speech_mel_db", 2), ("sound_kbps", 2),
            ("sound_mel_db", 2),
        ):  # fmt: skip
            cells.append("-" if row[name] is None else f"{row[name]:.{digits}f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
