"""The streaming ONNX model: frame by frame the codes of torch, and nearly those with weights of 8 bits."""

from __future__ import annotations

import functools
import importlib.util

import numpy as np
import pytest
import torch

from streamsplit.audio.synth import render
from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.errors import EncoderError, MissingExtraError
from streamsplit.export.codec_onnx import OnnxStream, StreamingOnnx, as_int8, check_streaming, export_streaming

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: pip install '.[onnx]'")
SIZES = {
    "D": 20, "strides": (160, 2), "front": "logmel", "bands": 16, "codebook_dim": 6, "num_quantizers": 2,
    "codebook_size": 32,
}  # fmt: skip


@functools.cache
def codec() -> TinyStream:
    model = TinyStream(**SIZES).train()
    with torch.no_grad():
        model(0.1 * torch.randn(2, 1, 16_000, generator=torch.Generator().manual_seed(1)))
    return model.eval()


@functools.cache
def exported() -> StreamingOnnx:
    return export_streaming(codec())


@needs_onnx
def test_frame_by_frame_it_gives_torchs_codes() -> None:
    model = exported()
    same = check_streaming(codec(), model)
    assert set(same) == {"silence", "faint noise", "noise", "speech"}
    assert min(share.every for share in same.values()) > 0.99
    assert same["silence"] == (1.0, 1.0)
    stream, hop = OnnxStream(model), model.hop
    speech = render("conversation", 30 * hop / 16_000, np.random.default_rng(9)).astype(np.float32)
    audio = np.concatenate([speech, np.zeros(10 * hop, np.float32), 0.01 * speech])
    frames = audio.reshape(-1, hop)
    first = np.stack([stream.push(frame) for frame in frames], 1)
    stream.reset()
    again = np.stack([stream.push(frame) for frame in frames], 1)
    assert np.array_equal(first, again)
    with torch.no_grad():
        assert (first == codec().encode(torch.from_numpy(audio)[None, None])[0].numpy()).mean() > 0.99


@needs_onnx
def test_a_floor_that_the_export_lost_is_found() -> None:
    import onnx
    from onnx import numpy_helper

    proto = onnx.load_from_string(exported().data)
    logarithm = next(node for node in proto.graph.node if node.op_type == "Log")
    floor = next(node for node in proto.graph.node if node.output[0] == logarithm.input[0])
    assert floor.op_type == "Add"
    (constant,) = (tensor for tensor in proto.graph.initializer if tensor.name in floor.input)
    assert numpy_helper.to_array(constant) == 1.0
    constant.CopyFrom(numpy_helper.from_array(np.float32(0.0).reshape(()), constant.name))
    with pytest.raises(EncoderError, match=r"of the codes of (silence|faint noise) alike"):
        check_streaming(codec(), exported()._replace(data=proto.SerializeToString()))


@needs_onnx
def test_weights_of_eight_bits_are_smaller_and_close() -> None:
    small = as_int8(exported())
    assert len(small.data) < len(exported().data)
    assert check_streaming(codec(), small, exact=False)["speech"].first > 0.8


@needs_onnx
def test_another_codecs_model_is_refused() -> None:
    other = TinyStream(**SIZES, seed=5).train()
    with torch.no_grad():
        other(0.1 * torch.randn(2, 1, 16_000))
    with pytest.raises(EncoderError, match=r"of the codes of .* alike between ONNX and torch"):
        check_streaming(other.eval(), exported())


def test_without_the_extra_its_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    from streamsplit.encoders import onnx_export

    def absent(name: str) -> object:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(onnx_export.importlib, "import_module", absent)
    with pytest.raises(MissingExtraError, match="onnx"):
        export_streaming(codec())
