"""How a device's uncertainty moves from window to window, on synthetic sound and on recordings:
`python -m benchmarks.uncertainty_process`. The simulation's defaults come from here."""

from __future__ import annotations

import math

import numpy as np
import torch

from benchmarks.record import record
from streamsplit.audio.files import read_audio
from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import WindowStream
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.encoders.projection import fit_projection
from streamsplit.evaluation.datasets import data_folder, load_labelled_folder
from streamsplit.learning.mixture import GaussianMixture

FIT_WINDOWS = 256
COMPONENTS = 64
TEMPERATURE = 0.1


def process_of(samples: np.ndarray, seed: int) -> dict[str, float]:
    """Mean, deviation and autocorrelation of the uncertainty as a share of log C, after the memory's warm-up."""
    torch.set_num_threads(1)
    features = np.stack([window.features for window in WindowStream().push(samples.astype(np.float32))])
    encoder = make_encoder(EncoderSettings(seed=seed))
    fit_projection(encoder, features[:FIT_WINDOWS], seed)
    mixture = GaussianMixture(COMPONENTS, encoder.embedding_dim)
    shares = []
    with torch.inference_mode():
        for start in range(0, len(features), 32):
            for z in encoder(torch.from_numpy(features[start : start + 32])).numpy():
                if mixture.ready:
                    shares.append(mixture.entropy(z, TEMPERATURE) / math.log(COMPONENTS))
                mixture.observe(z)
    seen = np.array(shares[FIT_WINDOWS:])
    centred = seen - seen.mean()
    lags = {
        f"autocorrelation_{lag}": float(np.mean(centred[lag:] * centred[:-lag]) / seen.var()) for lag in (1, 2, 4, 8)
    }
    return {"windows": len(seen), "mean": float(seen.mean()), "sd": float(seen.std()), **lags}


def main() -> None:
    """Ten minutes of each, three seeds."""
    figures: dict[str, list[dict[str, float]]] = {"synthetic": [], "esc10": []}
    folder = data_folder()
    for seed in range(3):
        figures["synthetic"].append(process_of(Soundscape(seed).read(16_000 * 600), seed))
        if folder is not None:
            clips = load_labelled_folder(folder / "esc10", limit=12)
            order = np.random.default_rng(seed).permutation(len(clips))
            sound = np.concatenate([read_audio(clips[i].path, 16_000) for i in order])
            figures["esc10"].append(process_of(sound, seed))
    for name, rows in figures.items():
        if rows:
            print(name, {key: round(float(np.mean([row[key] for row in rows])), 3) for key in rows[0]})
    record("uncertainty_process", figures, {"stride_ms": 500, "components": COMPONENTS}, range(3))


if __name__ == "__main__":
    main()
