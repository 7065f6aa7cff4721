"""Closed-form fits from unlabelled windows: the starting projection, the early exits, the resolution correction."""

from __future__ import annotations

import numpy as np
import torch

from streamsplit.audio.logmel import reduce_resolution
from streamsplit.encoders.base import BANDS, SplitEncoder
from streamsplit.encoders.initialise import set_identity
from streamsplit.encoders.pca import HalfWhitenedPca, fit_pca
from streamsplit.errors import EncoderError

RIDGE = 0.2  # penalty, as a share of the inputs' mean variance; good from 30 windows to 600 on held-out windows
MIN_PAIRS = 48
_BATCH = 32


def fit_projection(encoder: SplitEncoder, windows: np.ndarray, seed: int = 0) -> HalfWhitenedPca:
    """Sets the readouts' projections to the half-whitened principal directions of log-mel windows [n, f, t].

    The encoder's embedding space changes altogether: exits go back to the identity (call `fit_exits` next), and
    embeddings from before do not compare. Returns the map that was set, with the variance it explains. Raises
    EncoderError on fewer than two distinct windows.
    """
    pca = fit_pca(collect_readouts(encoder, windows), encoder.embedding_dim, seed)
    _set_projections(encoder, pca.matrix, pca.mean, np.zeros(encoder.embedding_dim, np.float32))
    return pca


def fit_projection_to(encoder: SplitEncoder, windows: np.ndarray, targets: np.ndarray, ridge: float = 0.3) -> float:
    """Sets the readouts' projections to the ridge regression of targets [n, d] on log-mel windows [n, f, t].

    As `fit_projection`, where something else than the readouts' own variance says what matters: the embedding space
    changes altogether. `ridge` is a share of the readouts' variance. Returns the mean cosine to the targets on these
    windows; raises EncoderError on fewer than two windows or targets of another shape.
    """
    if len(windows) < 2 or targets.shape != (len(windows), encoder.embedding_dim):
        raise EncoderError(
            f"got {len(windows)} windows and targets of shape {targets.shape}, expected at least 2 and as many targets "
            f"of {encoder.embedding_dim}"
        )
    readouts = collect_readouts(encoder, windows).astype(np.float64)
    mean, target_mean = readouts.mean(0), targets.mean(0, dtype=np.float64)
    centred = readouts - mean
    gram = centred @ centred.T  # [n, n]: fewer windows than statistics is the usual case
    penalty = ridge * np.trace(gram) / len(gram) + np.finfo(np.float64).tiny
    matrix = (centred.T @ np.linalg.solve(gram + penalty * np.eye(len(gram)), targets - target_mean)).T  # [d, g]
    _set_projections(encoder, matrix.astype(np.float32), mean.astype(np.float32), target_mean.astype(np.float32))
    fitted = centred @ matrix.T + target_mean
    return float((_unit(fitted) * _unit(targets)).sum(1).mean())


def fit_exits(encoder: SplitEncoder, windows: np.ndarray, ridge: float = RIDGE) -> list[float]:
    """Fits every early exit to the full embedding by ridge regression on log-mel windows [n, f, t].

    Returns each exit's mean cosine to the full embedding on these windows, shallowest first. Raises EncoderError on
    fewer than two windows.
    """
    if len(windows) < 2:
        raise EncoderError(f"got {len(windows)} windows, expected at least 2 to fit the exits")
    partials = _partial_sums(encoder, windows)
    target = _unit(partials[-1])
    agreements = []
    for head, seen in zip(encoder.exit_heads(), partials, strict=False):  # the last sum needs no exit
        weight, bias = _ridge_map(seen, target, ridge)
        with torch.no_grad():
            head.weight.copy_(torch.from_numpy(weight))
            head.bias.copy_(torch.from_numpy(bias))
        agreements.append(float((_unit(seen @ weight.T + bias) * target).sum(1).mean()))
    return agreements


def fit_reduced(encoder: SplitEncoder, windows: np.ndarray, ridge: float = RIDGE) -> float:
    """Fits `from_reduced` by ridge regression on full log-mel windows [n, 128, t] and what REDUCED makes of them.

    Returns the mean cosine of reduced embeddings to full ones on these windows. Fewer than MIN_PAIRS windows change
    nothing: such a fit does not generalise. Raises EncoderError on windows of another resolution.
    """
    if windows.ndim != 3 or windows.shape[1] != BANDS:
        raise EncoderError(f"got windows of shape {windows.shape}, expected [n, {BANDS}, frames]")
    small = np.stack([reduce_resolution(np.asarray(window, np.float32)) for window in windows])
    target = _unit(_partial_sums(encoder, windows)[-1])
    seen = _partial_sums(encoder, small)[-1]
    if len(windows) >= MIN_PAIRS:
        weight, bias = _ridge_map(seen, target, ridge)
        with torch.no_grad():
            encoder.from_reduced.weight.copy_(torch.from_numpy(weight))
            encoder.from_reduced.bias.copy_(torch.from_numpy(bias))
    with torch.no_grad():
        mapped = encoder.from_reduced(torch.from_numpy(seen).to(encoder.from_reduced.weight.device)).cpu().numpy()
    return float((_unit(mapped) * target).sum(1).mean())


def collect_readouts(encoder: SplitEncoder, windows: np.ndarray) -> np.ndarray:
    """`readout_features` [n, g] of log-mel windows [n, f, t], computed in batches."""
    if windows.ndim != 3 or not len(windows):
        raise EncoderError(f"got windows of shape {windows.shape}, expected [n, bands, frames] with n >= 1")
    device = next(encoder.parameters()).device
    parts = []
    with torch.no_grad():
        for start in range(0, len(windows), _BATCH):
            x = torch.from_numpy(np.asarray(windows[start : start + _BATCH], np.float32)).to(device)
            parts.append(encoder.readout_features(x).cpu().numpy())
    return np.concatenate(parts)


def _set_projections(encoder: SplitEncoder, matrix: np.ndarray, mean: np.ndarray, offset: np.ndarray) -> None:
    """Makes the readouts' sum matrix (statistics - mean) + offset, [d, g], [g] and [d]; exits become the identity."""
    start = 0
    with torch.no_grad():
        for number, project in enumerate(encoder.readout_projections()):
            columns = slice(start, start + project.in_features)
            bias = -matrix[:, columns] @ mean[columns] + (offset if number == 0 else 0.0)
            project.weight.copy_(torch.from_numpy(matrix[:, columns]))
            project.bias.copy_(torch.from_numpy(bias))
            start += project.in_features
        for head in (*encoder.exit_heads(), encoder.from_reduced):
            set_identity(head)


def _partial_sums(encoder: SplitEncoder, windows: np.ndarray) -> list[np.ndarray]:
    """The running sum [n, d] of the readouts' shares after each of them; the last one is the whole, not normalised."""
    groups = collect_readouts(encoder, windows)
    partial = np.zeros((len(groups), encoder.embedding_dim), np.float32)
    partials, offset = [], 0
    for project in encoder.readout_projections():
        columns = slice(offset, offset + project.in_features)
        weight, bias = (p.detach().cpu().numpy() for p in (project.weight, project.bias))
        partial = partial + groups[:, columns] @ weight.T + bias
        partials.append(partial)
        offset += project.in_features
    return partials


def _ridge_map(source: np.ndarray, target: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """weight [d, d], bias [d] with target ~ source weight^T + bias: least squares, drawn towards the best multiple of
    the identity, because source already is a part or a version of target."""
    source, target = source.astype(np.float64), target.astype(np.float64)
    source_mean, target_mean = source.mean(0), target.mean(0)
    x, y = source - source_mean, target - target_mean
    gram = x.T @ x
    smallest = np.finfo(np.float64).tiny  # keeps windows that are all alike from dividing by zero
    multiple = (x * y).sum() / max(np.trace(gram), smallest)
    penalised = gram + (ridge * np.trace(gram) / len(gram) + smallest) * np.eye(len(gram))
    weight = multiple * np.eye(len(gram)) + np.linalg.solve(penalised, x.T @ (y - multiple * x)).T
    return weight.astype(np.float32), (target_mean - weight @ source_mean).astype(np.float32)


def _unit(z: np.ndarray) -> np.ndarray:
    unit: np.ndarray = z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    return unit
