"""Encoders block by block: process time on one thread, parameters, multiply-accumulates, bytes that cross.

    python -m benchmarks.encoder_blocks [--repeats 60]

Times are medians over rounds in which all works alternate, so a busy machine slows all of them alike. The readouts'
share is the whole forward against the same blocks without readouts; the gain of batches is 16 windows one by one
against one batch of 16, from a crossing in the middle.
"""

# ruff: noqa: E402  (thread counts are read when numpy and torch are imported)
from __future__ import annotations

import os

for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_name] = "1"

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.record import record
from streamsplit.audio.logmel import LogMelSettings, log_mel
from streamsplit.audio.synth import Soundscape
from streamsplit.encoders.base import SplitEncoder, _as_channels_last, _normalise_input
from streamsplit.encoders.crossing import pack_crossing, stack_crossings, unpack_crossing
from streamsplit.encoders.factory import ENCODERS, EncoderSettings, make_encoder
from streamsplit.wire.media import Encoding, Resolution

SEED = 0
BATCH = 16
MIDDLE = {"mobilenet": 7, "resnet18": 4}
WANTED_FORWARD_MS = {"mobilenet": 6.0}
WANTED_READOUT_SHARE = 0.5


def measure(repeats: int, works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median process time in ms of each work."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(repeats + 3):
        for name, work in works.items():
            started = time.process_time()
            work()
            if round_number >= 3:  # the first rounds warm up
                times[name].append((time.process_time() - started) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def bare(encoder: SplitEncoder, x: torch.Tensor) -> torch.Tensor:
    """The blocks alone, in the layout in which the encoder runs them, without any readout."""
    h = _normalise_input(x.unsqueeze(1))
    for block in encoder.blocks:
        h = block(_as_channels_last(h))
    return h


def figures(name: str, resolution: Resolution, windows: np.ndarray, repeats: int) -> dict[str, Any]:
    """All figures of one encoder at one resolution; windows [16, f, t]."""
    encoder = make_encoder(EncoderSettings(name=name, seed=SEED))
    x = torch.from_numpy(windows[:1])
    batch = torch.from_numpy(windows)
    middle = MIDDLE[name]
    crossings = [encoder.forward_to(x, k) for k in range(encoder.num_blocks + 1)]
    singles = [encoder.forward_to(row, middle) for row in batch.split(1)]
    works: dict[str, Callable[[], object]] = {
        "forward": lambda: encoder(x),
        "bare": lambda: bare(encoder, x),
        "exit": lambda: encoder.exit_embedding(crossings[middle], middle),
    }
    for k in range(1, encoder.num_blocks + 1):
        works[f"block{k}"] = lambda k=k: encoder._step(crossings[k - 1], k)  # type: ignore[misc]
    for encoding in (Encoding.FP32, Encoding.FP16, Encoding.INT8):
        packed = pack_crossing(crossings[middle], encoding)
        works[f"pack-{encoding.label}"] = lambda e=encoding: pack_crossing(crossings[middle], e)  # type: ignore[misc]
        works[f"unpack-{encoding.label}"] = lambda p=packed: unpack_crossing(p)  # type: ignore[misc]
    times = measure(repeats, works)
    slow = measure(
        max(5, repeats // 6),
        {
            "one": lambda: [encoder.forward_from(single, middle) for single in singles],
            "all": lambda: encoder.forward_from(stack_crossings(singles), middle),
        },
    )
    costs = encoder.block_costs(*windows.shape[1:])
    return {
        "encoder": name,
        "resolution": resolution.name.lower(),
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "macs": sum(cost.macs for cost in costs),
        "forward_ms": times["forward"],
        "readout_share_of_forward": 1 - times["bare"] / times["forward"],
        "exit_ms": times["exit"],
        "completion_gain_of_batch_16": slow["one"] / slow["all"],
        "middle_cut": middle,
        "codec_us": {key: value * 1e3 for key, value in times.items() if "pack" in key},
        "blocks": [
            {
                "block": k,
                "name": cost.name,
                "ms": times[f"block{k}"],
                "parameters": cost.parameters,
                "macs": cost.macs,
                "shape": list(cost.output_shape),
                **{
                    f"{encoding.label}_bytes": len(pack_crossing(crossings[k], encoding))
                    for encoding in (Encoding.FP32, Encoding.FP16, Encoding.INT8)
                    if k < encoder.num_blocks
                },
            }
            for k, cost in enumerate(costs, 1)
        ],
    }


def main() -> int:
    """Measures, writes the JSON, prints a table; 1 if MobileNet or the readouts cost more than wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    settings = LogMelSettings()
    span = settings.span(100)
    audio = Soundscape(SEED).read(BATCH * span)
    results = []
    with torch.inference_mode():
        for name in ENCODERS:
            for resolution in Resolution:
                pieces = [log_mel(audio[i * span :][:span], settings, resolution) for i in range(BATCH)]
                frames = 100 if resolution is Resolution.FULL else 50
                windows = np.stack([piece[:, :frames] for piece in pieces])
                results.append(figures(name, resolution, windows, options.repeats))
    path = record("encoder_blocks", {"encoders": results}, {"repeats": options.repeats, "batch": BATCH}, [SEED])
    failed = 0
    for result in results:
        print(
            f"{result['encoder']:10} {result['resolution']:8} {result['parameters']:>10,} parameters "
            f"{result['macs'] / 1e6:7.1f} MMAC  forward {result['forward_ms']:6.2f} ms  readouts "
            f"{result['readout_share_of_forward']:5.1%}  batch of {BATCH}: {result['completion_gain_of_batch_16']:.1f}x"
        )
        for row in result["blocks"]:
            print(f"    {row['block']:2} {row['name']:16} {row['ms']:7.3f} ms {row.get('int8_bytes', 0):>7} bytes int8")
        too_slow = result["forward_ms"] > WANTED_FORWARD_MS.get(result["encoder"], float("inf"))
        if too_slow or result["readout_share_of_forward"] > WANTED_READOUT_SHARE:
            print("    slower than wanted", file=sys.stderr)
            failed += 1
    print(path)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
