"""Records this machine's processor load: `python -m benchmarks.record_load --seconds 3000 --name NAME --note WHAT`.

What it writes into the simulation's folder of loads is the other work that simulated devices are busy with.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.record import machine
from streamsplit.simulation.load import FOLDER, STEP_S


def main() -> None:
    """Samples on an absolute schedule; saves every minute, so that an interrupted recording is kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3000.0)
    parser.add_argument("--name", required=True)
    parser.add_argument("--note", required=True, help="what the machine was doing, in words")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / f"{args.name}.npz"
    shares: list[float] = []
    psutil.cpu_percent(None)
    start = time.monotonic()
    for index in range(1, int(args.seconds / STEP_S) + 1):
        time.sleep(max(start + index * STEP_S - time.monotonic(), 0.0))
        shares.append(psutil.cpu_percent(None))
        if index % 600 == 0 or index == int(args.seconds / STEP_S):
            about = {"note": args.note, "machine": machine(), "step_s": STEP_S}
            np.savez_compressed(path, percent=np.round(shares).astype(np.uint8), about=np.array(json.dumps(about)))
    print(f"{path}: {len(shares)} samples, mean {np.mean(shares):.1f} %")


if __name__ == "__main__":
    main()
