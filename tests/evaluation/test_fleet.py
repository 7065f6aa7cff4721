"""The demo's fleet: links, shares of sound, and settings files that the commands accept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from streamsplit.config import load_settings
from streamsplit.edge.settings import EdgeSettings
from streamsplit.errors import AudioError
from streamsplit.evaluation import fleet
from streamsplit.evaluation.datasets import Clip
from streamsplit.evaluation.fleet import FLEET
from streamsplit.server.settings import ServerSettings


def test_a_link_is_the_same_for_the_same_seed_and_dead_during_its_outage():
    device = next(device for device in FLEET if device.outage_share is not None)
    first, again, other = device.link(60, 1), device.link(60, 1), device.link(60, 2)
    assert np.array_equal(first.rate_bps, again.rate_bps) and not np.array_equal(first.rate_bps, other.rate_bps)
    start, length = device.outage_share
    assert first.at(60 * (start + length / 2))[0] == 0.0
    assert first.at(60 * (start + length) + 1)[0] > 0.0


def test_a_file_of_measured_links_gives_every_device_a_run_of_its_own(tmp_path: Path):
    path = tmp_path / "runs.csv"
    rows = [f"run{run},{t / 2:.1f},{run + 1}" for run in range(100) for t in range(240)]
    path.write_text("run,t_s,uplink_mbps\n" + "\n".join(rows) + "\n")
    rates = [device.link(60, index, str(path)).at(1.0)[0] for index, device in enumerate(FLEET)]
    assert rates == pytest.approx([1e6 * 1 * 1.0, 1e6 * 38 * 0.05, 1e6 * 75 * 0.02])


def test_clips_are_dealt_out_once_each_with_every_label_on_every_device(tmp_path: Path):
    clips = []
    for label in ("a", "b"):
        for number in range(6):
            path = tmp_path / "data" / label / f"{number}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"RIFF")
            clips.append(Clip(path, label, None, f"{label}{number}"))
    folders = [tmp_path / "out" / str(index) for index in range(3)]
    assert fleet.share_clips(clips, folders) == [4, 4, 4]
    linked = [link for folder in folders for link in folder.rglob("*.wav")]
    assert sorted(link.resolve() for link in linked) == sorted(clip.path.resolve() for clip in clips)
    assert all({part.name for part in folder.iterdir()} == {"a", "b"} for folder in folders)
    with pytest.raises(AudioError, match="at least 3"):
        fleet.share_clips(clips[:2], [tmp_path / str(index) for index in range(3)])


def test_the_files_it_writes_are_settings_that_device_and_server_accept(tmp_path: Path):
    for device in FLEET:
        sections = fleet.device_settings(
            device,
            folder=tmp_path,
            url="ws://127.0.0.1:1/v1/stream",
            token="t",
            source="synthetic",
            seed=1,
            encoder="mobilenet",
            journal=tmp_path / "j",
            loop=False,
        )
        settings = load_settings(fleet.write_yaml(tmp_path / f"{device.id}.yaml", sections), EdgeSettings)
        assert settings.device.profile.name == device.type and settings.emulation.enabled
        assert settings.device.profile.radio.name == device.radio
    sections = fleet.server_settings(folder=tmp_path, port=1, token="t", encoder="mobilenet", seed=0)
    assert load_settings(fleet.write_yaml(tmp_path / "s.yaml", sections), ServerSettings).auth.shared_token == "t"
