"""A codec's encoder as a streaming ONNX model: a frame of samples and the state in, codes and the new state out.

It mirrors the float encoder (`TinyStream.encode`), not the one in whole numbers that microcontrollers run.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamsplit.audio.synth import render
from streamsplit.audio.waves import RATE_HZ
from streamsplit.codec.tinystream.front import FFT, FLOOR, OCTAVES, LogMelFront
from streamsplit.codec.tinystream.layers import Chain, State, Streaming
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.codec.tinystream.quantizer import nearest
from streamsplit.encoders.onnx_export import OPSET, needed, quiet
from streamsplit.errors import EncoderError

AUDIO, INDICES = "audio", "indices"
LEAST_SAME = 0.99  # of all quantizers' codes: where two entries are equally near, the later codebooks differ, too
_LEAST_WEIGHTS = 64  # of a tensor that is worth writing in 8 bits
_CHECKED_FRAMES = 100


class StreamingOnnx(NamedTuple):
    """The model; `states` are names and shapes of what goes in as `NAME` and comes out as `NAME_after`."""

    data: bytes
    hop: int
    states: tuple[tuple[str, tuple[int, ...]], ...]


def export_streaming(model: TinyStream, *, int8: bool = False) -> StreamingOnnx:
    """Audio [1, 1, hop] and states to indices [1, quantizers, 1] and states, all states zeros at the start.

    With `int8` in the form of `as_int8`. Raises MissingExtraError without the extra 'onnx'.
    """
    for package in ("onnx", "onnxscript"):
        needed(package)
    step = _Step(model).eval()
    state = step.encoder.initial(1)
    names = [f"state{number}" for number in range(len(state))]
    audio = torch.zeros(1, 1, model.settings.hop)
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            step, (audio, *state), dynamo=True, input_names=[AUDIO, *names],
            output_names=[INDICES, *(f"{name}_after" for name in names)], opset_version=OPSET, verbose=False,
        )  # fmt: skip
    assert program is not None  # it is None only where a file name is given
    shapes = tuple((name, tuple(tensor.shape)) for name, tensor in zip(names, state, strict=True))
    exported = StreamingOnnx(program.model_proto.SerializeToString(), model.settings.hop, shapes)
    return as_int8(exported) if int8 else exported


def as_int8(exported: StreamingOnnx) -> StreamingOnnx:
    """The model with its convolutions' weights as 8-bit numbers, a scale per output channel, and floats where used.

    Activations are as they were; the weights take a quarter of their size. With a log-mel front most of the file is the
    transform's matrices, which stay floats, as codebooks and mel filters do.
    """
    proto = needed("onnx").load_from_string(exported.data)
    _store_as_int8(proto)
    return exported._replace(data=proto.SerializeToString())


class OnnxStream:
    """Runs a streaming model frame by frame; `reset` begins anew."""

    def __init__(self, model: StreamingOnnx) -> None:
        """Raises MissingExtraError without onnxruntime."""
        runtime = needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = runtime.InferenceSession(model.data, options, providers=["CPUExecutionProvider"])
        self._model = model
        self.reset()

    def reset(self) -> None:
        """Silence before the first sample."""
        self._state = {name: np.zeros(shape, np.float32) for name, shape in self._model.states}

    def push(self, frame: NDArray[np.float32]) -> NDArray[np.int64]:
        """Indices [quantizers] of one frame [hop]."""
        indices, *after = self._session.run(None, {AUDIO: frame[None, None], **self._state})
        self._state = dict(zip(self._state, after, strict=True))
        return np.asarray(indices[0, :, 0])


class Same(NamedTuple):
    """Share of the codes that ONNX Runtime and torch have alike."""

    every: float  # of all quantizers' codes
    first: float  # of the first quantizer's


def check_streaming(model: TinyStream, exported: StreamingOnnx, *, exact: bool = True) -> dict[str, Same]:
    """What ONNX Runtime gives beside torch's float encoder on silence, faint and loud noise, and synthetic speech.

    Raises EncoderError where the share over all quantizers is below LEAST_SAME on one of them, and `exact`.
    """
    stream, found = OnnxStream(exported), {}
    for name, audio in _sounds(model).items():
        stream.reset()
        got = np.stack([stream.push(frame) for frame in audio.reshape(-1, model.settings.hop)], 1)
        with torch.no_grad():
            alike = got == model.encode(torch.from_numpy(audio)[None, None])[0].numpy()
        found[name] = Same(float(alike.mean()), float(alike[0].mean()))
        if exact and found[name].every < LEAST_SAME:
            raise EncoderError(
                f"got {found[name].every:.1%} of the codes of {name} alike between ONNX and torch, expected "
                f"{LEAST_SAME:.1%}; nothing was written: try another version of onnxscript or torch"
            )
    return found


def _sounds(model: TinyStream) -> dict[str, NDArray[np.float32]]:
    """Whole frames [n] of what a device hears: nothing, next to nothing, too much, and someone who talks."""
    random, size = np.random.default_rng(0), _CHECKED_FRAMES * model.settings.hop
    noise = random.standard_normal(size).astype(np.float32)
    speech = render("conversation", size / RATE_HZ, random)
    sounds = {"silence": 0.0 * noise, "faint noise": 1e-4 * noise, "noise": 0.1 * noise, "speech": speech}
    return {name: sound.astype(np.float32) for name, sound in sounds.items()}


class _Step(nn.Module):
    """Encoder and quantizer as one function of tensors."""

    def __init__(self, model: TinyStream) -> None:
        super().__init__()
        layers: list[Streaming] = list(model.encoder.layers)  # type: ignore[arg-type]
        if isinstance(layers[0], LogMelFront):
            layers[0] = _MatrixFront(layers[0])
        self.encoder = Chain(*layers)
        self.register_buffer("codebooks", model.quantizer.codebooks)

    def forward(self, audio: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        latent, after = self.encoder.step(audio, state)
        residual, chosen = latent.transpose(1, 2)[0], []
        books: Tensor = self.codebooks  # type: ignore[assignment]
        for book in books:
            index = nearest(residual, book)
            residual = residual - book[index]
            chosen.append(index)
        return (torch.stack(chosen)[None], *after)


class _MatrixFront(Streaming):
    """The spectral front with the transform as two matrices, which every ONNX runtime has.

    Its energies are in units of the floor, and the floor 1: the exporter's optimiser takes a constant of 1e-8 for zero
    and leaves the sum out.
    """

    def __init__(self, front: LogMelFront) -> None:
        super().__init__()
        self.front = front
        angles = 2 * np.pi * np.outer(np.arange(FFT), np.arange(FFT // 2 + 1)) / FFT
        self.register_buffer("cosines", torch.from_numpy(np.cos(angles).astype(np.float32)))
        self.register_buffer("sines", torch.from_numpy(np.sin(angles).astype(np.float32)))

    def initial(self, batch: int) -> State:
        """As the front's."""
        return self.front.initial(batch)

    def step(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """As the front's."""
        frames, rest = self.front.windows(x, state)
        cosines: Tensor = self.cosines  # type: ignore[assignment]
        sines: Tensor = self.sines  # type: ignore[assignment]
        power = (frames @ cosines).square() + (frames @ sines).square()
        energies = (power * (self.front.scale / FLOOR)) @ self.front.filters.T
        return (torch.log2(energies + 1.0) * (2.0 / OCTAVES) - 1.0).transpose(1, 2), rest


def _store_as_int8(proto: Any) -> None:
    """Rewrites the weights of convolutions in place: 8-bit initializers behind DequantizeLinear."""
    import onnx
    from onnx import helper, numpy_helper

    weights = {node.input[1] for node in proto.graph.node if node.op_type == "Conv"}
    nodes = []
    for tensor in list(proto.graph.initializer):
        if tensor.name not in weights or int(np.prod(tensor.dims)) < _LEAST_WEIGHTS:
            continue
        array = numpy_helper.to_array(tensor)
        scale = np.maximum(np.abs(array).reshape(len(array), -1).max(1), 1e-12).astype(np.float32) / 127
        whole = np.rint(array / scale.reshape(-1, *[1] * (array.ndim - 1))).astype(np.int8)
        name = tensor.name
        proto.graph.initializer.remove(tensor)
        proto.graph.initializer.append(numpy_helper.from_array(whole, f"{name}.int8"))
        proto.graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}.int8", f"{name}.scale"], [name], axis=0))
    kept = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*nodes, *kept])
    onnx.checker.check_model(proto)
