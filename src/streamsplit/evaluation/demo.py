"""The demo: one server, three emulated devices on shaped links, from untrained or published weights to a report."""

from __future__ import annotations

import json
import secrets
import socket
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamsplit.config import Settings, setting
from streamsplit.edge.journal import read_journal
from streamsplit.encoders.factory import NUM_BLOCKS, make_encoder
from streamsplit.errors import CheckpointError, StreamSplitError
from streamsplit.evaluation import fleet, study
from streamsplit.evaluation.fleet import FLEET, FleetDevice
from streamsplit.evaluation.processes import Child, read_json_url, wait_until_ready
from streamsplit.evaluation.provenance import machine, revision_of_code
from streamsplit.network.shaper import ShapedProxy
from streamsplit.network.trace import BandwidthTrace
from streamsplit.server.models import RevisionFiles
from streamsplit.server.refiner_loop import current_revision
from streamsplit.weights.pretrained import StartSettings, start_encoder
from streamsplit.weights.revision import load_weights

MAP_POINTS = 600
FRAME_BYTES = 16 + 8  # frame header and WebSocket header of a window
START_TIMEOUT_S = 60
Progress = Callable[[str, dict[str, Any] | None, float], None]  # (phase, server's status, share done)


@dataclass(frozen=True, kw_only=True)
class DemoSettings(Settings):
    """How long and on what."""

    output_dir: str = setting("runs")
    data: str = setting("")  # folder of <label>/<file>; "" = synthetic soundscapes
    learn_s: float = setting(300.0, low=30.0)  # sound that each device hears in the fast-forward phase
    live_s: float = setting(60.0, low=10.0)  # real time
    probe_scenes: int = setting(450, low=45)  # synthetic scenes to train the probe on, and as many to test it
    trace: str = setting("")  # CSV of measured links; "" = generated ones
    encoder: str = setting("mobilenet", choices=("mobilenet", "resnet18"))
    pretrained: str = setting("")  # published encoder to start from, by name or path, in place of `encoder`
    port: int = setting(0, low=0, high=65535)  # of the server's page; 0 = any free port
    seed: int = setting(0, low=0)


def run_demo(settings: DemoSettings, progress: Progress) -> dict[str, Any]:
    """Runs everything; returns what run.json holds (also saved in the run's folder, key 'folder')."""
    started = time.time()
    start = fleet.start_settings(settings.encoder, settings.pretrained)
    folder = Path(settings.output_dir) / time.strftime("%Y%m%d-%H%M%S", time.localtime(started))
    folder.mkdir(parents=True)
    sound = _prepare_sound(settings, folder)
    token = secrets.token_hex(16)
    port = settings.port or _free_port()
    page = f"http://127.0.0.1:{port}/"
    links = [device.link(settings.live_s, settings.seed + index, settings.trace) for index, device in enumerate(FLEET)]
    server_yaml = fleet.write_yaml(
        folder / "server.yaml",
        fleet.server_settings(
            folder=folder / "server",
            port=port,
            token=token,
            encoder=settings.encoder,
            seed=settings.seed,
            pretrained=settings.pretrained,
        ),
    )
    with ExitStack() as stack:
        progress(f"starting the server, live page at {page}", None, 0.0)
        server = Child("the server", ["server", "--config", str(server_yaml)], folder / "logs" / "server.log")
        stack.callback(server.stop)
        wait_until_ready(server, page + "api/status")
        run = _Run(settings, folder, token, port, server, page, sound, progress)
        learned = time.monotonic()
        run.learn()
        learn_s = time.monotonic() - learned
        devices = run.live(links, stack)
        status = read_json_url(page + "api/status") or {}
    server.check()
    progress("probing what was learned", None, 0.0)
    rows, maps = _probe(settings, start, folder, sound)
    result = {
        "meta": {
            "started": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started)),
            "data": sound.name,
            "held_out": sound.probe.held_out,
            "duration_s": time.time() - started,
            "learn_phase_s": round(learn_s, 1),
            "settings": settings.as_dict(),
            "seed": settings.seed,
            "num_blocks": NUM_BLOCKS[start.name],
            "streamsplit": revision_of_code(),
            "machine": machine(),
        },
        "devices": devices,
        "integrity": _integrity(folder),
        "probe": rows,
        "map": maps,
        "refiner": {"steps": run.steps, "revisions": status.get("revisions", 0), "status": status.get("refiner")},
    }
    (folder / "run.json").write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    return result | {"folder": str(folder)}


@dataclass(frozen=True)
class _Sound:
    """What devices hear, and what the probe is trained and tested on."""

    name: str
    learn: list[str]  # a source a device
    live: list[str]
    loop: bool
    probe: study.ProbeSet


@dataclass
class _Run:
    settings: DemoSettings
    folder: Path
    token: str
    port: int
    server: Child
    page: str
    sound: _Sound
    progress: Progress
    steps: list[dict[str, float]] = field(default_factory=list)  # the refiner's, as seen from outside

    def learn(self) -> None:
        """Fast forward: every device hears its share of the sound as fast as this machine computes."""
        proxies = [ShapedProxy(("127.0.0.1", self.port), fleet.learn_link()) for _ in FLEET]
        children = self._start("learn", proxies, self.sound.learn, speed=0.0, loop=False)
        try:
            while any(child.running for child in children):
                self._show("learning, fast forward", sum(not child.running for child in children) / len(children))
            for child in children:
                child.check()
        finally:
            self._stop(children, proxies)

    def live(self, links: Sequence[BandwidthTrace], stack: ExitStack) -> list[dict[str, Any]]:
        """Real time: the same devices go on, slowed down to their class, over their shaped links."""
        proxies = [ShapedProxy(("127.0.0.1", self.port), link, seed=index) for index, link in enumerate(links)]
        children = self._start("live", proxies, self.sound.live, speed=1.0, loop=self.sound.loop)
        try:
            self._wait_until_heard(children)
            begin = time.monotonic()
            while (done := (time.monotonic() - begin) / self.settings.live_s) < 1.0:
                self._show("live, real time", done)
                for child in children:
                    child.check()
            for child in children:
                child.stop()
                child.check()
        finally:
            self._stop(children, proxies)
        return [
            _device_row(device, self.folder, link, proxy, self.settings.live_s)
            for device, link, proxy in zip(FLEET, links, proxies, strict=True)
        ]

    def _start(
        self, phase: str, proxies: Sequence[ShapedProxy], sources: Sequence[str], *, speed: float, loop: bool
    ) -> list[Child]:
        children = []
        for index, (device, proxy, source) in enumerate(zip(FLEET, proxies, sources, strict=True)):
            proxy.start_in_thread()
            host, port = proxy.address
            sections = fleet.device_settings(
                device, folder=self.folder / "devices" / device.id, url=f"ws://{host}:{port}/v1/stream",
                token=self.token, source=source, seed=self.settings.seed + 10 * index + (5 if phase == "live" else 0),
                encoder=self.settings.encoder, pretrained=self.settings.pretrained,
                journal=_journal(self.folder, device, phase), loop=loop,
            )  # fmt: skip
            path = fleet.write_yaml(self.folder / f"{device.id}-{phase}.yaml", sections)
            log = self.folder / "logs" / f"{device.id}-{phase}.log"
            children.append(Child(device.id, ["edge", "--config", str(path), "--speed", f"{speed:g}"], log))
        return children

    def _stop(self, children: Sequence[Child], proxies: Sequence[ShapedProxy]) -> None:
        for child in children:
            child.stop()
        for proxy in proxies:
            proxy.stop_thread()

    def _wait_until_heard(self, children: Sequence[Child]) -> None:
        """Until every device has its first window: processes take seconds to start, and none of the live phase's."""
        journals = [_journal(self.folder, device, "live") for device in FLEET]
        deadline = time.monotonic() + START_TIMEOUT_S
        while not all(path.exists() and '"kind": "window"' in path.read_text("utf-8") for path in journals):
            for child in children:
                child.check()
            if time.monotonic() > deadline:
                raise StreamSplitError(f"the devices heard nothing within {START_TIMEOUT_S} s; see {self.folder}/logs")
            self._show("live, devices start", 0.0)

    def _show(self, phase: str, done: float) -> None:
        self.server.check()
        status = read_json_url(self.page + "api/status")
        refiner = (status or {}).get("refiner") or {}
        if refiner.get("loss") is not None and (not self.steps or refiner["steps"] > self.steps[-1]["step"]):
            names = ("loss", "effective_rank")
            self.steps.append({"step": refiner["steps"]} | {name: refiner[name] for name in names})
        self.progress(phase, status, done)
        time.sleep(0.5)


def _prepare_sound(settings: DemoSettings, folder: Path) -> _Sound:
    seed = settings.seed
    if not settings.data:
        probe = study.synthetic_probe(settings.probe_scenes, seed)
        learn = [f"synthetic:{settings.learn_s:g}"] * len(FLEET)
        return _Sound("synthetic soundscapes", learn, ["synthetic"] * len(FLEET), False, probe)
    probe, train, test = study.folder_probe(Path(settings.data), seed)
    folders = [folder / "sound" / device.id for device in FLEET]
    fleet.share_clips(train, folders)
    sources = [str(path) for path in folders]
    return _Sound(f"{len(train) + len(test)} clips of {Path(settings.data).name}", sources, sources, True, probe)


def _device_row(
    device: FleetDevice, folder: Path, link: BandwidthTrace, proxy: ShapedProxy, live_s: float
) -> dict[str, Any]:
    rows = list(read_journal(_journal(folder, device, "live")))
    windows = [row for row in rows if row["kind"] == "window"]
    for row in windows:
        if row["sequence"] is None:  # the gate kept it, or the queue was full: nothing crossed
            row["cut"] = f"{row['cut'].partition(':')[0]}:none"
    sent = [row for row in windows if row["sequence"] is not None]
    trace = [[float(t), float(rate)] for t, rate in zip(link.t_s, link.rate_bps, strict=True) if t <= live_s]
    return {
        "id": device.id,
        "device_class": device.type,
        "network": device.network,
        "live_s": live_s,
        "windows_seen": len(windows),
        "windows_sent": len(sent),
        "window_bytes": sum(row["payload_bytes"] + FRAME_BYTES for row in sent),
        "uplink_bytes": proxy.uplink_bytes,
        "downlink_bytes": proxy.downlink_bytes,
        "energy_mj": sum(row.get("energy_mj") or 0.0 for row in windows),
        "cuts": dict(Counter(row["cut"] for row in windows)),
        "trace": trace,
        "journal": [row for row in rows if row["kind"] in ("window", "result")],
    }


def _probe(
    settings: DemoSettings, start: StartSettings, folder: Path, sound: _Sound
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    learned = make_encoder(start)
    named = current_revision(folder / "server")
    if named is None:
        raise CheckpointError(f"{folder / 'server'}: the server left no checkpoint; see {folder}/logs/server.log")
    load_weights(learned, RevisionFiles(folder / "server" / "revisions").weights(named[0]))
    before = "pretrained" if start.pretrained else "untrained"
    encoders = [(f"encoder, {before}", "before", start_encoder(start)), ("encoder, learned", "after", learned)]
    if start.pretrained:
        encoders.insert(0, ("encoder, untrained", "baseline", make_encoder(start)))
    rows, vectors = study.compare(sound.probe, encoders, seed=settings.seed)
    labels = [item.label for item in sound.probe.test for _ in item.windows]
    keep = np.random.default_rng(settings.seed).permutation(len(labels))[:MAP_POINTS]
    maps = [
        [title, [[round(float(x), 3) for x in point] for point in study.map_2d(vectors[name][keep], settings.seed)]]
        for title, name in ((before, f"encoder, {before}"), ("learned", "encoder, learned"))
    ]
    return rows, {"method": "t-SNE", "maps": maps, "labels": [labels[index] for index in keep]}


def _integrity(folder: Path) -> dict[str, int]:
    """Windows that devices accepted for sending against rows in the server's database, by plain SQL on both files."""
    accepted = stored = distinct = 0
    with closing(sqlite3.connect(folder / "server" / "server.sqlite")) as database:
        for device in FLEET:
            with closing(sqlite3.connect(folder / "devices" / device.id / "queue.sqlite")) as queue:
                meta = dict(queue.execute("SELECT name, value FROM meta"))
            accepted += meta["next_sequence"] - 1
            row = database.execute(
                "SELECT COUNT(*), COUNT(DISTINCT sequence) FROM windows WHERE device = ? AND epoch = ?",
                (device.id, meta["epoch"]),
            ).fetchone()
            stored, distinct = stored + row[0], distinct + row[1]
    return {"accepted": accepted, "stored": stored, "missing": accepted - distinct, "duplicated": stored - distinct}


def _journal(folder: Path, device: FleetDevice, phase: str) -> Path:
    return folder / "devices" / device.id / f"journal-{phase}.jsonl"


def _free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
