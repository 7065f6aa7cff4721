"""Streaming log-mel against librosa, and audio coding: process time, one thread, same run, same audio.

    python -m benchmarks.logmel [--seconds 60] [--repeats 5]

Three ratios, each librosa's time over ours on the same samples, in librosa's best case (mono float32, no centring pad):

- windows as a device makes them: ours hears blocks of 0.1 s and computes each frame once; librosa computes every window
  of 1 s anew, so the half that overlaps is computed twice. This is the one with a goal.
- each frame once: both get the new audio in pieces of 0.5 s and compute no frame twice; ours also assembles windows.
- whole clip: one call of each for all the audio, which no device can wait for.
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
from streamsplit.audio.logmel import LogMelSettings, log_mel
from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import WindowStream
from streamsplit.codec.features import pack_features, unpack_features
from streamsplit.codec.opus import decode_segment, encode_segment
from streamsplit.codec.pcm import pack_pcm, unpack_pcm
from streamsplit.wire.media import Encoding, Resolution

SEED = 0
WANTED_RATIO = 5.0
RATIOS = {
    "ratio_windows_as_a_device_runs": "windows as a device makes them, librosa per window with overlap recomputed",
    "ratio_each_frame_once_500ms_pieces": "each frame once, both given the new audio in 0.5 s pieces",
    "ratio_whole_clip_in_one_call": "whole clip in one call",
}


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
    """Measures, writes the JSON, prints the figures; 1 if a device's windows are not made fast enough."""
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
        whole_clip=lambda: log_mel(audio, settings),
        librosa_windows=lambda: [reference(audio[at : at + span]) for at in starts],
        librosa_new_500ms=lambda: [reference(audio[at : at + 8_240]) for at in range(0, len(audio) - 8_240, 8_000)],
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
    ratios = {
        "ratio_windows_as_a_device_runs": times["librosa_windows"] / times["windows_100ms"],
        "ratio_each_frame_once_500ms_pieces": times["librosa_new_500ms"] / times["windows_500ms"],
        "ratio_whole_clip_in_one_call": times["librosa_whole_clip"] / times["whole_clip"],
    }
    met = {name: ratio >= WANTED_RATIO for name, ratio in ratios.items()}
    figures = {
        **{f"{name}_us_per_window": 1e6 * value / count for name, value in times.items()},
        **{f"{name}_us_per_half_second": 1e6 * value / len(pieces) for name, value in coding.items()},
        "opus_bytes_per_s": 2.0 * sum(map(len, opus)) / len(opus),
        "pcm_bytes_per_s": 2.0 * sum(map(len, pcm)) / len(pcm),
        **ratios,
        "wanted_ratio": WANTED_RATIO,
        "ratios_that_meet_it": [name for name, good in met.items() if good],
    }
    path = record("logmel", figures, {**settings.as_dict(), **vars(options)}, [SEED])
    for name, value in figures.items():
        if isinstance(value, float) and name not in ratios:
            print(f"{name:45} {value:10.2f}")
    print(f"\nstreaming log-mel against librosa (wanted: {WANTED_RATIO:g} times as fast)")
    for name, ratio in ratios.items():
        print(f"{ratio:6.1f}  {'meets it' if met[name] else 'does not':8}  {RATIOS[name]}")
    print(f"written to {path}")
    return 0 if met["ratio_windows_as_a_device_runs"] else 1


if __name__ == "__main__":
    sys.exit(main())
