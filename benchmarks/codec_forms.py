"""A codec's encoder in its other forms: share of the codes of held-out speech that are those of the float encoder.

    python -m benchmarks.codec_forms [--data data] [--codec tiny_mel] [--recordings 40] [--seconds 6]

Whole numbers (microcontrollers), streaming ONNX, and streaming ONNX with 8-bit weights (both with the extra 'onnx').
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

from benchmarks.record import record
from streamsplit.config import load_settings
from streamsplit.evaluation.codec_rivals import encoder_of
from streamsplit.evaluation.codec_run import CodecSettings
from streamsplit.evaluation.codec_sounds import judged_recordings
from streamsplit.evaluation.codec_study import read_clips
from streamsplit.weights.codec_file import read_codec

FORMS = ("integer", "onnx", "onnx-int8")


def main() -> int:
    """Measures, writes the JSON and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("STREAMSPLIT_DATA", "data")))
    parser.add_argument("--codec", default="tiny_mel")
    parser.add_argument("--config", type=Path, default=Path("configs/codec/tiny_mel.yaml"))
    parser.add_argument("--recordings", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=6.0)
    args = parser.parse_args()
    settings = load_settings(args.config, CodecSettings)
    judged = settings.evaluation.replace(recordings=args.recordings)
    speech, _ = judged_recordings(args.data, settings.data, judged)
    clips = read_clips(speech, args.data, speech=True, longest_s=args.seconds)
    codec = read_codec(args.codec)
    encoders = {form: encoder_of(codec, form) for form in ("float", *FORMS)}
    alike: dict[str, list[np.ndarray]] = {form: [] for form in FORMS}
    with torch.no_grad():
        for clip in clips:
            expected = encoders["float"](clip.audio)
            for form in FORMS:
                alike[form].append(encoders[form](clip.audio) == expected)
    figures: dict[str, object] = {"codes": int(sum(same.size for same in alike[FORMS[0]]))}
    for form, same in alike.items():
        shares = np.concatenate(same, 1).mean(1)
        figures[form] = {"every": round(float(shares.mean()), 4), "by_quantizer": [round(float(x), 4) for x in shares]}
        print(f"{form}: {shares.mean():.1%} of all codes as the float encoder's, {shares[0]:.1%} of the first's")
    told = {"codec": args.codec, "seconds": args.seconds, "recordings": [clip.name for clip in clips]}
    print(record("codec_forms", figures, told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
