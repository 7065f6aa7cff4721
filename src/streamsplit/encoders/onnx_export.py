"""Encoders as ONNX models for batches of any size, whole or cut in two, each checked against torch by onnxruntime."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from streamsplit.audio.logmel import LOGMEL_MEAN, LOGMEL_STD
from streamsplit.encoders.base import BANDS, MIN_FRAMES, SplitEncoder
from streamsplit.encoders.crossing import Crossing
from streamsplit.errors import EncoderError, MissingExtraError

OPSET = 18
FRAMES = 100  # of a window
LEAST_COSINE = 0.9999  # between the embeddings of onnxruntime and torch

_LOGMEL, _MAP, _PARTIAL, _EMBEDDING = "logmel", "map", "partial", "embedding"
_CHECKED_BATCHES = (1, 5)


class OnnxModel(NamedTuple):
    """One model; the batch is the first dimension, of any size, of every input and output."""

    data: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class Agreement(NamedTuple):
    """How the models' embeddings compare with torch's on random windows."""

    windows: int
    max_difference: float
    least_cosine: float


def export_encoder(encoder: SplitEncoder, frames: int = FRAMES) -> OnnxModel:
    """The encoder: `logmel` [n, 128, frames] to `embedding` [n, d]; raises MissingExtraError, EncoderError."""
    return _export(encoder, (_windows(2, frames),), (_LOGMEL,), (_EMBEDDING,))


def export_cut(encoder: SplitEncoder, cut: int, frames: int = FRAMES) -> tuple[OnnxModel, OnnxModel]:
    """The encoder in two: `logmel` to `map` [n, c, f, t] and `partial` [n, d] after block `cut`, and from these two to
    `embedding`; raises MissingExtraError, and EncoderError unless 0 < cut < L."""
    if not 0 < cut < encoder.num_blocks:
        raise EncoderError(f"got a cut after block {cut}, expected 1..{encoder.num_blocks - 1} for {encoder.name}")
    front, rest = _Front(encoder, cut).eval(), _Rest(encoder, cut).eval()
    x = _windows(2, frames)
    with torch.no_grad():
        crossing = front(x)
    return (
        _export(front, (x,), (_LOGMEL,), (_MAP, _PARTIAL)),
        _export(rest, crossing, (_MAP, _PARTIAL), (_EMBEDDING,)),
    )


def check_models(encoder: SplitEncoder, models: Sequence[OnnxModel], frames: int = FRAMES) -> Agreement:
    """Runs the models, one after the other, on random windows beside the encoder, in batches of 1 and of 5.

    Raises EncoderError where an embedding's cosine with torch's is not above LEAST_COSINE.
    """
    runtime = needed("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = [runtime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"]) for model in models]
    largest, least = 0.0, 1.0
    for batch in _CHECKED_BATCHES:
        x = _windows(batch, frames)
        with torch.no_grad():
            expected = encoder(x).numpy()
        values: Sequence[np.ndarray] = [x.numpy()]
        for model, session in zip(models, sessions, strict=True):
            values = session.run(list(model.outputs), dict(zip(model.inputs, values, strict=True)))
        got = values[0]
        largest = max(largest, float(np.abs(got - expected).max()))
        norms = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
        least = min(least, float(((got * expected).sum(1) / norms).min()))
    if not least > LEAST_COSINE:
        raise EncoderError(
            f"got a cosine of {least:.6f} between ONNX and torch, expected more than {LEAST_COSINE}; "
            "nothing was written: try another version of onnxscript or torch"
        )
    return Agreement(sum(_CHECKED_BATCHES), largest, least)


class _Front(nn.Module):
    def __init__(self, encoder: SplitEncoder, cut: int) -> None:
        super().__init__()
        self.encoder, self.cut = encoder, cut

    def forward(self, logmel: Tensor) -> tuple[Tensor, Tensor]:
        crossing = self.encoder.forward_to(logmel, self.cut)
        return crossing.h.contiguous(), crossing.partial


class _Rest(nn.Module):
    def __init__(self, encoder: SplitEncoder, cut: int) -> None:
        super().__init__()
        self.encoder, self.cut = encoder, cut

    def forward(self, h: Tensor, partial: Tensor) -> Tensor:
        return self.encoder.forward_from(Crossing(h, partial), self.cut)


def _export(
    module: nn.Module, inputs: tuple[Tensor, ...], names: tuple[str, ...], outputs: tuple[str, ...]
) -> OnnxModel:
    for package in ("onnx", "onnxscript"):
        needed(package)
    batch = torch.export.Dim("n", min=1)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            module, inputs, dynamo=True, input_names=names, output_names=outputs, opset_version=OPSET, verbose=False,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
        )  # fmt: skip
    assert program is not None  # it is None only where a file name is given
    return OnnxModel(program.model_proto.SerializeToString(), names, outputs)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the exporter's progress and its notes on packages that nobody needs from the screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            for category in (FutureWarning, DeprecationWarning, UserWarning):
                warnings.simplefilter("ignore", category=category)
            yield
    finally:
        logger.setLevel(level)


def _windows(batch: int, frames: int) -> Tensor:
    """Windows that look like log-mel features in level and spread, the same every time."""
    if frames < MIN_FRAMES:
        raise EncoderError(f"got windows of {frames} frames, expected at least {MIN_FRAMES}")
    generator = torch.Generator().manual_seed(batch)
    return LOGMEL_MEAN + LOGMEL_STD * torch.randn(batch, BANDS, frames, generator=generator)


def needed(package: str) -> Any:
    """The package, or MissingExtraError naming the extra that has it."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtraError("exporting to ONNX", "onnx", str(error)) from error
