"""A device too small for any encoder and a real server: it sends codes, the server does the rest."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from server_harness import make_settings, running

from streamsplit.edge.runtime import EdgeRuntime
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.sources import open_source
from streamsplit.errors import ConnectionRefused
from streamsplit.splitting.cut import Cut
from streamsplit.wire.frame import HEADER_BYTES
from streamsplit.wire.media import MEDIA_HEADER_BYTES, Encoding

CODES = Cut(0, Encoding.TINYSTREAM)
SECONDS = 12


def device(folder: Path, url: str, **changes: Any) -> EdgeRuntime:
    values: dict[str, Any] = {
        "device": {"id": folder.name, "state_dir": str(folder)},
        "encoder": {"enabled": False},
        "server": {"url": url, "token": "secret", "drain_s": 20.0},
        "splitting": {"agent": {"policy": "fixed", "cut": "0:tinystream"}, "gate": {"enabled": False}},
        **changes,
    }
    return EdgeRuntime(EdgeSettings.from_mapping(values), open_source(f"synthetic:{SECONDS}", speed=0, seed=3), speed=0)


def test_codes_of_a_device_without_an_encoder_become_embeddings_that_resemble_those_of_its_sound(
    tmp_path: Path,
) -> None:
    """Oracle: the same sound sent as PCM; the agreement is what the cut table promises, about .88 on recordings."""
    with running(make_settings(tmp_path / "server")) as server:
        url = f"ws://127.0.0.1:{server.port}/v1/stream"
        pcm = {"splitting": {"agent": {"policy": "fixed", "cut": "0:pcm16"}, "gate": {"enabled": False}}}
        coded = asyncio.run(device(tmp_path / "coded", url).run())
        asyncio.run(device(tmp_path / "few", url, codec={"quantizers": 1}).run())
        asyncio.run(device(tmp_path / "plain", url, **pcm).run())
    windows = coded.status.windows_sent
    assert coded.cuts == {"0:tinystream": windows} and windows >= 2 * SECONDS - 2
    embeddings = {}
    with sqlite3.connect(tmp_path / "server" / "server.sqlite") as database:
        for name in ("coded", "few", "plain"):
            rows = database.execute("SELECT embedding, error FROM windows WHERE device = ? ORDER BY sequence", (name,))
            found = rows.fetchall()
            assert {error for _, error in found} == {""} and len(found) == windows
            embeddings[name] = np.stack([np.frombuffer(data, np.float16).astype(np.float32) for data, _ in found])
    agreement = {name: (embeddings[name] * embeddings["plain"]).sum(1).mean() for name in ("coded", "few")}
    chance = (embeddings["coded"] * np.roll(embeddings["plain"], 7, 0)).sum(1).mean()
    assert agreement["coded"] > 0.7 and agreement["coded"] > agreement["few"] > chance
    per_window = HEADER_BYTES + MEDIA_HEADER_BYTES + 8 + -(-25 * 45 // 8)
    control = coded.status.uplink_bytes - windows * per_window
    assert 0 < control < 60 * windows  # the greeting, acknowledgements of results, the first window's other half


def test_codes_that_the_server_cannot_decode_are_refused_at_the_door(tmp_path: Path) -> None:
    with running(make_settings(tmp_path / "server").replace(codecs=())) as server:
        url = f"ws://127.0.0.1:{server.port}/v1/stream"
        with pytest.raises(ConnectionRefused, match=r"codec: got [0-9a-f]{8}, expected one of none; set codec.name"):
            asyncio.run(device(tmp_path / "coded", url).run())
        silent = device(tmp_path / "none", url, codec={"name": ""}, splitting={"agent": {"policy": "heuristic"}})
        assert CODES not in silent.table.cuts
        assert asyncio.run(silent.run()).status.windows_sent > 0
