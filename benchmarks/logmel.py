"""Streaming log-mel against librosa, and audio coding: process time, one thread, same run, same audio.

    python -m benchmarks.logmel [--seconds 60] [--repeats 5]

librosa is asked for what a device needs, one window of features at every stride, from the same samples, in its own best
case (mono float32, no centring pad). The whole clip in one call, which no device can wait for, is reported beside it.
"""

# ruff: noqa: E402  (numpy counts its threads when it is imported)
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from benchmarks.record import record
from streamsplit.audio.logmel import LogMelSettings, StreamingLogMel, log_mel
from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import WindowStream
from streamsplit.codec.features import pack_features, unpack_features
from streamsplit.codec.opus import decode_segment, encode_segment
from streamsplit.codec.pcm import pack_pcm, unpack_pcm
from streamsplit.wire.media import Encoding, Resolution

SEED = 0
WANTED_RATIO = 5.0


def measure(repeats: int, **works: Callable[[], object]) -> dict[str, float]:
    """Median process time in s of each work; rounds alternate, so a busy machine slows all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(repeats + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if round_number:  # the first round warms up
                times[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> int:
    """Measures, writes the JSON, prints the figures; 1 if the wanted ratio was not reached."""
    import librosa

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    settings = LogMelSettings()
    audio = Soundscape(SEED).read(options.seconds * settings.sample_rate_hz)
    hop, span = settings.hop_samples, settings.span(100)
    starts = range(0, len(audio) - span + 1, 50 * hop)

    def stream(block: int, resolution: Resolution = Resolution.FULL) -> int:
        windows = WindowStream(settings)
        return sum(len(windows.push(audio[at : at + block], resolution)) for at in range(0, len(audio), block))

    def frames(block: int) -> None:
        extractor = StreamingLogMel(settings)
        state = extractor.initial()
        for at in range(0, len(audio), block):
            _, state = extractor.step(audio[at : at + block], state)

    def reference(samples: np.ndarray) -> np.ndarray:
        return librosa.feature.melspectrogram(
            y=samples, sr=settings.sample_rate_hz, n_fft=settings.fft_samples, win_length=settings.window_samples,
            hop_length=hop, center=False, n_mels=settings.mel_bands, fmin=settings.low_hz, fmax=settings.high_hz,
        )  # fmt: skip

    count = stream(1_600)
    if count != len(starts):
        print(f"got {count} windows, librosa would get {len(starts)}", file=sys.stderr)
        return 1
    times = measure(
        options.repeats,
        windows_100ms=lambda: stream(1_600),
        windows_500ms=lambda: stream(8_000),
        windows_reduced_100ms=lambda: stream(1_600, Resolution.REDUCED),
        frames_100ms=lambda: frames(1_600),
        whole_clip=lambda: log_mel(audio, settings),
        librosa_windows=lambda: [reference(audio[at : at + span]) for at in starts],
        librosa_new_500ms=lambda: [reference(audio[at : at + 8_240]) for at in range(0, len(audio) - 8_240, 8_000)],
        librosa_100ms=lambda: [reference(audio[at : at + 1_840]) for at in range(0, len(audio) - 1_840, 1_600)],
        librosa_whole_clip=lambda: reference(audio),
    )
    pieces = [audio[at : at + 8_000] for at in range(0, len(audio) - 8_000, 8_000)]
    opus = [encode_segment(piece) for piece in pieces]
    pcm = [pack_pcm(piece) for piece in pieces]
    features = [log_mel(piece)[:, :48] for piece in pieces]
    int8 = [pack_features(piece, Encoding.LOGMEL_INT8) for piece in features]
    coding = measure(
        options.repeats,
        opus_encode=lambda: [encode_segment(piece) for piece in pieces],
        opus_decode=lambda: [decode_segment(payload, 8_000) for payload in opus],
        pcm_pack=lambda: [pack_pcm(piece) for piece in pieces],
        pcm_unpack=lambda: [unpack_pcm(payload) for payload in pcm],
        logmel_int8_pack=lambda: [pack_features(piece, Encoding.LOGMEL_INT8) for piece in features],
        logmel_int8_unpack=lambda: [unpack_features(payload) for payload in int8],
    )
    ratio = times["librosa_windows"] / times["windows_100ms"]
    figures = {
        **{f"{name}_us_per_window": 1e6 * value / count for name, value in times.items()},
        **{f"{name}_us_per_half_second": 1e6 * value / len(pieces) for name, value in coding.items()},
        "opus_bytes_per_s": 2.0 * sum(map(len, opus)) / len(opus),
        "pcm_bytes_per_s": 2.0 * sum(map(len, pcm)) / len(pcm),
        "ratio_windows_librosa_to_ours": ratio,
        "ratio_windows_500ms_librosa_to_ours": times["librosa_windows"] / times["windows_500ms"],
        "ratio_each_frame_once_500ms_librosa_to_ours": times["librosa_new_500ms"] / times["windows_500ms"],
        "ratio_100ms_blocks_librosa_to_ours": times["librosa_100ms"] / times["frames_100ms"],
        "ratio_whole_clip_librosa_to_ours": times["librosa_whole_clip"] / times["whole_clip"],
    }
    path = record("logmel", figures, {**settings.as_dict(), **vars(options)}, [SEED])
    for name, value in figures.items():
        print(f"{name:45} {value:10.2f}")
    print(f"streaming log-mel is {ratio:.1f} times as fast as librosa (wanted {WANTED_RATIO:g}); written to {path}")
    return 0 if ratio >= WANTED_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
