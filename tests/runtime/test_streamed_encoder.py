"""The encoder's blocks over real sockets: a device with room for three of them goes through every cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from weight_stream_harness import weight_server

from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import ClosedError, ConfigError, LayerUnavailable, ManifestError
from streamsplit.facade.streaming import StreamingModel
from streamsplit.facade.streaming_encoder import StreamingEncoder
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.steady import fetch_bytes
from streamsplit.splitting.table import CutRow, CutTable, make_table
from streamsplit.weights.streaming.encoder import chunk_encoder
from streamsplit.weights.streaming.manifest import Manifest, file_name
from streamsplit.wire.media import Encoding

SETTINGS = EncoderSettings(name="mobilenet", width=0.25, embedding_dim=16)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[SplitEncoder, Manifest, str, Path]]:
    folder = tmp_path_factory.mktemp("encoder")
    plain = make_encoder(SETTINGS)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    manifest = chunk_encoder(plain, SETTINGS, folder)
    with weight_server(folder) as server:
        yield plain, manifest, server.url, folder


def windows(seed: int) -> torch.Tensor:
    return torch.randn(1, 128, 100, generator=torch.Generator().manual_seed(seed)) - 6


def block_bytes(manifest: Manifest, *blocks: int) -> int:
    return sum(manifest.chunk(f"block.{block}").memory_bytes for block in blocks)


def room_for_three(manifest: Manifest) -> int:
    """Bytes that hold blocks 1..3, or the largest block, and no fourth."""
    largest = max(chunk.memory_bytes for chunk in manifest.of_role("layer"))
    budget = max(block_bytes(manifest, 1, 2, 3), largest)
    assert budget < block_bytes(manifest, 1, 2, 3, 4)
    return budget


def held_bytes(device: StreamingEncoder) -> int:
    """What the blocks' tensors really take."""
    names = {tensor for chunk in device.streamed.manifest.of_role("layer") for tensor in chunk.tensors}
    return sum(t.numel() * 4 for name, t in device.encoder.state_dict().items() if name in names)


def test_a_device_with_room_for_three_blocks_goes_through_cuts_2_6_and_1(served):
    plain, manifest, url, _ = served
    budget = room_for_three(manifest)
    peak = 0
    with StreamingEncoder(url, cache_bytes=budget, prefetch=0) as device, torch.no_grad():
        assert device.held_blocks == 0 and held_bytes(device) == 0
        largest = device.streamed.layers.largest_bytes
        held, received = [], []
        for cut in (2, 2, 6, 6, 1, 2):
            before = device.bytes_received
            x = windows(cut)
            got, expected = device.encoder.forward_to(x, cut), plain.forward_to(x, cut)
            assert torch.equal(got.h, expected.h) and torch.equal(got.partial, expected.partial), cut
            assert torch.equal(plain.forward_from(got, cut), plain(x))  # the server goes on from there
            held.append(device.held_blocks)
            received.append(device.bytes_received - before)
            peak = max(peak, held_bytes(device))
        assert held == [2, 2, 3, 3, 3, 3]
        assert received[1] == received[4] == received[5] == 0  # what was there is not fetched again
        first, again = received[2], received[3]
        assert first > again > block_bytes(manifest, 4, 5, 6)  # there is no room for these
        assert peak <= budget + largest


def test_the_policy_sees_what_a_deeper_cut_would_fetch(served):
    _, manifest, url, _ = served
    rows, total = [], 0
    for block in range(14):
        total += block_bytes(manifest, block) if block else 0
        encoding = Encoding.LOGMEL_INT8 if block == 0 else Encoding.INT8 if block < 13 else Encoding.EMBEDDING_FP16
        rows.append(CutRow(Cut(block, encoding), 1.0, 1.0, 1000.0, 1.0, 1.0, 0.0, 1.0, fetch_bytes=float(total)))
    table = make_table(CutTable("mobilenet", "pi4", 1.0, 13, tuple(rows), {"encoder": SETTINGS.as_dict()}))
    with StreamingEncoder(url, cache_bytes=room_for_three(manifest), prefetch=0) as device, torch.no_grad():
        prices = []
        for cut in (0, 2, 6):
            device.encoder.forward_to(windows(0), cut)
            prices.append([fetch_bytes(table.row(rows[k].cut), table, device.held_blocks) for k in (2, 6)])
    expected = [(1, 2), (1, 2, 3, 4, 5, 6)], [(), (3, 4, 5, 6)], [(), (4, 5, 6)]
    assert prices == [[float(block_bytes(manifest, *blocks)) for blocks in row] for row in expected]


def test_the_whole_encoder_runs_where_no_two_blocks_fit(served):
    plain, _, url, _ = served
    with StreamingEncoder(url) as probe:
        largest = probe.streamed.layers.largest_bytes
    with StreamingEncoder(url, cache_bytes=largest, prefetch=1) as device, torch.no_grad():
        assert torch.equal(device.encoder(windows(3)), plain(windows(3)))
        assert held_bytes(device) <= 2 * largest
        crossing = device.encoder.forward_to(windows(3), 4)
        assert torch.equal(device.encoder.exit_embedding(crossing, 4), plain.exit_embedding(crossing, 4))
    with pytest.raises(ClosedError, match="the streaming encoder is closed"):
        device.encoder.forward_to(windows(3), 4)
    device.close()
    assert held_bytes(device) == 0


@pytest.mark.parametrize("name", ["leo", "resnet18"])
def test_every_encoder_can_be_streamed(tmp_path: Path, name: str):
    settings = EncoderSettings(name=name, embedding_dim=16)
    plain = make_encoder(settings)
    chunk_encoder(plain, settings, tmp_path)
    with weight_server(tmp_path) as server, StreamingEncoder(server.url) as device, torch.no_grad():
        assert torch.equal(device.encoder(windows(1)), plain(windows(1)))
        assert device.held_blocks == plain.num_blocks


def test_a_block_that_cannot_be_had_is_named(served, tmp_path: Path):
    plain, manifest, _, _ = served
    chunk_encoder(plain, SETTINGS, tmp_path)
    path = tmp_path / file_name(manifest.chunk("block.5").digest)
    good = path.read_bytes()
    with weight_server(tmp_path) as server, StreamingEncoder(server.url, prefetch=0) as device, torch.no_grad():
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(LayerUnavailable, match=r"layer 'block\.5'.*damaged"):
            device.encoder.forward_to(windows(0), 6)
        path.write_bytes(good)
        assert torch.equal(device.encoder.forward_to(windows(0), 6).h, plain.forward_to(windows(0), 6).h)


def test_a_budget_below_the_largest_block_and_a_server_of_something_else_are_refused(served):
    _, _, url, _ = served
    with pytest.raises(ConfigError, match="the largest layer must fit"):
        StreamingEncoder(url, cache_bytes=100)
    with pytest.raises(ManifestError, match="streamsplit-encoder"):
        StreamingModel.open(url)
