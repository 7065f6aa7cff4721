"""ONNX models: the same embeddings as torch for any batch, whole or cut; real encoders where onnxruntime is there."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from streamsplit.audio.logmel import LOGMEL_MEAN, LOGMEL_STD
from streamsplit.encoders.base import BANDS, SplitEncoder
from streamsplit.encoders.layers import ConvNorm
from streamsplit.encoders.onnx_export import check_models, export_cut, export_encoder
from streamsplit.encoders.readout import ReadoutSite
from streamsplit.errors import EncoderError, MissingExtraError

missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
needs_onnx = pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed: pip install '.[onnx]'")


def small_encoder() -> SplitEncoder:
    """Two blocks: what every encoder is made of, exported in seconds."""
    blocks: list[nn.Module] = [ConvNorm(1, 8, 3, 2, activation=nn.Hardswish), ConvNorm(8, 16, 3, 2, activation=nn.ReLU)]
    sites = [ReadoutSite(0, 1, BANDS), ReadoutSite(1, 8, BANDS // 2), ReadoutSite(2, 16, BANDS // 4)]
    return SplitEncoder("small", blocks, ["one", "two"], sites, 32, np.random.default_rng(0)).eval()


def windows(batch: int) -> torch.Tensor:
    return LOGMEL_MEAN + LOGMEL_STD * torch.randn(batch, BANDS, 100, generator=torch.Generator().manual_seed(77))


@needs_onnx
def test_the_whole_model_gives_torchs_embeddings_for_any_batch() -> None:
    import onnxruntime

    encoder = small_encoder()
    model = export_encoder(encoder)
    agreement = check_models(encoder, [model])
    assert agreement.windows == 6 and agreement.max_difference < 1e-5 and agreement.least_cosine > 0.99999
    session = onnxruntime.InferenceSession(model.data)
    assert [item.name for item in session.get_inputs()] == ["logmel"] == list(model.inputs)
    for batch in (1, 3, 8):
        with torch.no_grad():
            expected = encoder(windows(batch)).numpy()
        (got,) = session.run(["embedding"], {"logmel": windows(batch).numpy()})
        np.testing.assert_allclose(got, expected, atol=1e-5)
    with pytest.raises(EncoderError, match=r"cosine.*nothing was written"):
        other = small_encoder()
        nn.init.normal_(other.readout_projections()[1].weight)
        check_models(other, [model])


@needs_onnx
def test_both_sides_of_a_cut_together_give_torchs_embeddings() -> None:
    import onnxruntime

    encoder = small_encoder()
    front, rest = export_cut(encoder, 1)
    assert front.outputs == rest.inputs == ("map", "partial")
    assert check_models(encoder, [front, rest]).max_difference < 1e-5
    with torch.no_grad():
        crossing = encoder.forward_to(windows(4), 1)
    h, partial = onnxruntime.InferenceSession(front.data).run(["map", "partial"], {"logmel": windows(4).numpy()})
    np.testing.assert_allclose(h, crossing.h.numpy(), atol=1e-4)
    np.testing.assert_allclose(partial, crossing.partial.numpy(), atol=1e-4)


@pytest.mark.parametrize("cut", [0, 3, -1])
def test_a_cut_at_either_end_is_refused(cut: int) -> None:
    with pytest.raises(EncoderError, match=r"expected 1\.\.2 for small"):
        export_cut(small_encoder(), cut)


def test_windows_too_short_for_any_encoder_are_refused() -> None:
    with pytest.raises(EncoderError, match="got windows of 3 frames"):
        export_encoder(small_encoder(), frames=3)


def test_without_the_extra_one_line_says_what_to_install(monkeypatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install -e '\.\[onnx\]'"):
        export_encoder(small_encoder())
