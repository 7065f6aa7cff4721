"""Published codecs: what is written is read, rounded to half precision, and everything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamsplit.codec.tinystream.model import TinyStream
from streamsplit.errors import CheckpointError, ConfigError
from streamsplit.weights.codec_file import pack_codec, read_codec

CARD = {"name": "t", "licence": "-", "data": "-", "hours": 1, "command": "-", "commit": "-", "metrics": {}}
PEAKS = [0.5] * 20


def trained() -> TinyStream:
    model = TinyStream(C=2, D=8, strides=(4, 4), num_quantizers=2, codebook_size=16)
    model.train()
    with torch.no_grad():
        model(0.1 * torch.randn(1, 1, 800, generator=torch.Generator().manual_seed(0)))
    return model.eval()


def test_a_published_codec_codes_as_its_rounded_self(tmp_path: Path) -> None:
    model, path = trained(), tmp_path / "codec.safetensors"
    path.write_bytes(pack_codec(model, PEAKS, CARD))
    found = read_codec(path)
    assert found.card == CARD
    assert list(found.peaks) == PEAKS
    assert found.model.settings == model.settings
    with torch.no_grad():
        for value in (*model.parameters(), model.quantizer.codebooks):
            value.copy_(value.half().float())
        audio = 0.1 * torch.randn(1, 1, 500)
        indices = model.encode(audio)
        assert torch.equal(found.model.encode(audio), indices)
        assert torch.equal(found.model.decode(indices), model.decode(indices))
    assert found.model.model_id() == model.model_id()


def test_codebooks_without_data_are_not_published() -> None:
    with pytest.raises(CheckpointError, match="codebooks hold no data"):
        pack_codec(TinyStream(C=2, D=8), PEAKS, CARD)
    with pytest.raises(ConfigError, match="got none of licence"):
        pack_codec(trained(), PEAKS, {name: value for name, value in CARD.items() if name != "licence"})


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    good = pack_codec(trained(), PEAKS, CARD)
    for name, data in {"cut": good[:-7], "empty": b"", "noise": b"\1" * 100}.items():
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{name}\.safetensors: is not a codec that this version can read"):
            read_codec(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_codec(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="got 'nosuch', expected a packaged codec"):
        read_codec("nosuch")
    with pytest.raises(CheckpointError, match="weights of another kind"):
        read_codec(Path(__file__).parents[2] / "src/streamsplit/encoders/pretrained/default.safetensors")
