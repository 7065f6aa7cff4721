"""Policies on a running device over real sockets: learning, hindsight, constraints, what steps in, what is pushed."""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from server_harness import make_settings, running
from tiny_server import TinyServer

from streamsplit.edge.counters import RunSummary
from streamsplit.edge.journal import Journal, read_journal
from streamsplit.edge.queue import OfflineQueue
from streamsplit.edge.runtime import EdgeRuntime
from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.sources import open_source
from streamsplit.errors import CutError
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.features import STATE_FEATURES
from streamsplit.splitting.greedy import GreedySettings
from streamsplit.splitting.policy import fallbacks_of, learner_of
from streamsplit.splitting.policy_file import Layer, PolicyFile, architecture_of
from streamsplit.splitting.policy_push import sign_policy
from streamsplit.splitting.table import CutRow, CutTable, make_table, packaged_table
from streamsplit.wire.messages import Error, Policy, PolicyPush, Stats

KEY = "a key that stays at home"
PCM, OPUS, FEATURES = (Cut.parse(text) for text in ("0:pcm16", "0:opus24", "0:logmel-int8"))


def table() -> CutTable:
    """Of a device without an encoder: three ways to cross at block 0."""
    rows = (
        CutRow(PCM, 1.0, 3.0, 16_020.0, 1.0, 1.0),
        CutRow(OPUS, 5.0, 3.0, 1_600.0, 1.0, 0.95),
        CutRow(FEATURES, 1.0, 3.0, 6_430.0, 1.0, 0.99),
    )
    return make_table(CutTable("mobilenet", "host", 1.0, 13, rows, {}))


def policy(favourite: Cut, of: CutTable | None = None, **changes: Any) -> PolicyFile:
    """A policy that always chooses `favourite`."""
    of = of or table()
    width, n = len(STATE_FEATURES) + len(of.cuts), len(of.cuts)
    bias = np.where([cut == favourite for cut in of.cuts], 1000.0, 0.0).astype(np.float32)
    bound = np.full(len(STATE_FEATURES), 1000.0, np.float32)
    layers = (Layer(np.zeros((width, n), np.float32), bias),)
    # says that it was trained under constraints: a device that has no readouts yet has not all of the cuts
    about = {"training": {"environment": {"constraints": {"energy_budget_mw": 100.0}}}}
    file = PolicyFile(
        "mobilenet", architecture_of(of), 13, of.cuts, GreedySettings(), layers, 2.0, -bound, bound, about
    )  # fmt: skip
    return file._replace(**changes)


def push(version: int, favourite: Cut = PCM, *, key: str = KEY, **changes: Any) -> PolicyPush:
    pushed = sign_policy(key, version, policy(favourite, **changes).to_bytes())
    return PolicyPush(version=version, encoder="mobilenet", data=pushed.data, signature=pushed.signature)


def settings(folder: Path, url: str, agent: dict[str, Any], **splitting: Any) -> EdgeSettings:
    return EdgeSettings.from_mapping({
        "device": {"id": "edge-1", "state_dir": str(folder / "state"), "journal": str(folder / "journal")},
        "encoder": {"enabled": False},
        "server": {"url": url, "token": "secret", "first_backoff_s": 0.05, "longest_backoff_s": 0.2, "drain_s": 5.0},
        "splitting": {"agent": agent, "gate": {"enabled": False}, **splitting},
    })  # fmt: skip


def runtime(config: EdgeSettings, sound: str, speed: float = 0.0, **options: Any) -> EdgeRuntime:
    journal = Journal(config.device.journal)
    return EdgeRuntime(config, open_source(sound, speed=speed), speed=speed, table=table(), journal=journal, **options)


async def finished(device: EdgeRuntime) -> RunSummary:
    return await asyncio.wait_for(device.run(), 30)


async def until(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def rows(config: EdgeSettings, kind: str) -> list[dict[str, Any]]:
    return [row for row in read_journal(config.device.journal) if row["kind"] == kind]


def errors(server: TinyServer) -> list[Error]:
    return [message for message in server.messages if isinstance(message, Error)]


def test_every_decision_is_logged_with_alternatives_and_judged_when_its_result_is_in(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            config = settings(tmp_path, server.url, {"policy": "fixed", "cut": "0:pcm16"})
            summary = await finished(runtime(config, "synthetic:20"))
            status = summary.status
            assert (status.policy, status.decisions, status.cut_changes, status.fallbacks) == ("fixed", 39, 0, 0)
            for row in rows(config, "window"):
                assert {cut for cut, _ in row["alternatives"]} == {"0:opus24", "0:logmel-int8"}
                costs = [cost for _, cost in row["alternatives"]]
                assert costs == sorted(costs) and row["expected_cost"] > costs[0]  # sound as it is costs the most
            judged = rows(config, "hindsight")
            assert len(judged) == status.results == 39
            assert all(row["regret"] >= 0 and row["best"] != "0:pcm16" for row in judged)
            mean = sum(row["regret"] for row in judged) / len(judged)
            assert status.regret == pytest.approx(mean, abs=1e-3) and mean > 10  # 4 (16 - 1.6) kB / 1.5 kB and more
            told = [message for message in server.messages if isinstance(message, Stats)][-1]
            assert told.policy == "fixed" and told.regret == pytest.approx(status.regret)

    asyncio.run(run())


@pytest.mark.parametrize("name", ["bandit", "ppo-corrected"])
def test_policies_that_learn_get_every_result_with_its_delay(tmp_path: Path, name: str) -> None:
    async def run() -> None:
        policy(FEATURES).save(tmp_path / "p.npz")
        async with TinyServer().running() as server:
            agent = {"policy": name, "policy_file": str(tmp_path / "p.npz")}
            device = runtime(settings(tmp_path, server.url, agent), "synthetic:6", speed=4)
            learned = []
            learner = learner_of(device.pipeline.policy)
            original = learner.learn
            learner.learn = lambda experience: (learned.append(experience), original(experience))
            summary = await finished(device)
            assert len(learned) == summary.status.results == summary.accepted_through > 5
            for experience in learned:
                assert 0.0 <= experience.network_ms <= experience.latency_ms < 2000.0
                assert experience.cut in table().cuts and experience.observation.link_up
            assert learner._model.samples == len(learned)

    asyncio.run(run())


def test_a_window_that_stays_teaches_and_is_judged_at_once(tmp_path: Path) -> None:
    async def run() -> None:
        of = make_table(
            CutTable("mobilenet", "host", 1.0, 13, (*table().rows, CutRow(Cut.parse("13:none"), 9, 0, 0, 9, 1.0)), {})
        )
        config = settings(tmp_path, "ws://127.0.0.1:9/v1/stream", {"policy": "keep-local"})
        config = EdgeSettings.from_mapping({**config.as_dict(), "encoder": {"enabled": True, "width": 0.25}})
        journal = Journal(config.device.journal)
        device = EdgeRuntime(config, open_source("synthetic:4", speed=0), speed=0, table=of, journal=journal)
        status = (await finished(device)).status
        assert status.windows_skipped == status.decisions == len(rows(config, "hindsight")) == 7
        assert all(row["cut"] == "13:none" and row["network_ms"] is None for row in rows(config, "hindsight"))

    asyncio.run(run())


def test_constraints_hold_on_a_running_device_and_a_forbidden_fixed_cut_stops_it_at_the_start(tmp_path: Path) -> None:
    async def run() -> None:
        async with TinyServer().running() as server:
            policy(OPUS).save(tmp_path / "p.npz")
            agent = {"policy": "ppo", "policy_file": str(tmp_path / "p.npz")}
            config = settings(tmp_path, server.url, agent, constraints={"raw_audio": False})
            summary = await finished(runtime(config, "synthetic:6"))
            assert summary.cuts == {"0:logmel-int8": 11}
            free = settings(tmp_path / "free", server.url, agent)
            assert (await finished(runtime(free, "synthetic:6"))).cuts == {"0:opus24": 11}

    asyncio.run(run())
    fixed = settings(
        tmp_path, "ws://127.0.0.1:9", {"policy": "fixed", "cut": "0:opus24"}, constraints={"raw_audio": False}
    )
    with pytest.raises(CutError, match=r"fixed cut 0:opus24.*forbidden"):
        runtime(fixed, "synthetic:6")
    OfflineQueue(fixed.queue_path).close()  # nobody holds it


@pytest.mark.parametrize("damage", ["missing", "damaged", "another table"])
def test_a_live_device_without_a_usable_policy_runs_the_heuristic_and_reports_it(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "p.npz"
    if damage == "damaged":
        path.write_bytes(policy(OPUS).to_bytes()[:100])
    elif damage == "another table":
        policy(OPUS, encoder="resnet18").save(path)

    async def run() -> None:
        async with TinyServer().running() as server:
            config = settings(tmp_path, server.url, {"policy": "ppo", "policy_file": str(path)})
            summary = await finished(runtime(config, "synthetic:6"))
            status = summary.status
            assert status.policy == "heuristic, ppo is not usable" and status.fallbacks == status.decisions == 11
            assert "the heuristic decides" in status.problem
            assert summary.cuts == {"0:opus24": 11}  # the least bytes: the formula's blocks need an encoder
            assert "the heuristic decides" in rows(config, "problem")[0]["text"]
            assert all("'ppo' is not usable" in row["reason"] for row in rows(config, "window"))
            told = [message for message in server.messages if isinstance(message, Stats)][-1]
            assert (told.policy, told.fallbacks) == (status.policy, 11)

    asyncio.run(run())
    with pytest.raises(CutError):
        runtime(
            settings(tmp_path, "ws://x", {"policy": "ppo", "policy_file": str(path)}), "synthetic", strict_policy=True
        )


def test_a_pushed_policy_is_followed_at_once_and_after_a_restart(tmp_path: Path) -> None:
    async def run() -> None:
        policy(FEATURES).save(tmp_path / "p.npz")
        agent = {"policy": "ppo", "policy_file": str(tmp_path / "p.npz"), "policy_key": KEY}
        async with TinyServer().running() as server:
            config = settings(tmp_path, server.url, agent)
            device = runtime(config, "synthetic", speed=10)
            running_device = asyncio.create_task(device.run())
            await until(lambda: device.counters.cuts["0:logmel-int8"] > 3)
            server.sessions[0].send(push(3))
            await until(lambda: device.counters.cuts["0:pcm16"] > 3)
            assert device.status().policy == "ppo v3, pushed" and not errors(server)
            device.stop()
            await running_device
            again = runtime(config, "synthetic:6")
            summary = await finished(again)
            assert summary.cuts == {"0:pcm16": 11} and summary.status.policy == "ppo v3, pushed"
            said = [(hello.want_policy, hello.policy_version) for hello in server.hellos]
            assert said == [(True, 0), (True, 3)]
            assert [row["version"] for row in rows(config, "policy_file")] == [3]

    asyncio.run(run())


def test_forged_stale_and_foreign_policies_are_refused_with_a_reason_and_the_old_one_stays(tmp_path: Path) -> None:
    good = push(3)
    foreign = push(7, encoder="resnet18", num_blocks=9)
    refused = {
        "signature": push(5, OPUS, key="guessed"),
        "newer than v3": good,
        "newer than": push(2, OPUS),
        "another cut table": foreign,
        "another cut table: got encoder": PolicyPush(version=8, encoder="resnet18", data=b"", signature=bytes(32)),
        "not a policy file": PolicyPush(
            version=9, encoder="mobilenet", data=b"zip?", signature=sign_policy(KEY, 9, b"zip?").signature
        ),
        "expected at most 35840": PolicyPush(version=9, encoder="mobilenet", data=bytes(36_000), signature=bytes(32)),
    }

    async def run() -> None:
        policy(FEATURES).save(tmp_path / "p.npz")
        agent = {"policy": "ppo", "policy_file": str(tmp_path / "p.npz"), "policy_key": KEY}
        async with TinyServer().running() as server:
            config = settings(tmp_path, server.url, agent)
            device = runtime(config, "synthetic", speed=10)
            running_device = asyncio.create_task(device.run())
            await until(lambda: device.counters.results > 2)
            server.sessions[0].send(good)
            await until(lambda: device.policies.version == 3)
            for count, (why, message) in enumerate(refused.items(), 1):
                server.sessions[0].send(message)
                await until(lambda count=count: len(errors(server)) == count)
                error = errors(server)[-1]
                assert error.code == "bad_policy" and why in error.detail and not error.fatal
                assert why in device.status().problem
            assert device.status().policy == "ppo v3, pushed"
            before = device.counters.cuts["0:pcm16"]
            await until(lambda: device.counters.cuts["0:pcm16"] > before + 2)
            device.stop()
            await running_device
            assert device.counters.cuts["0:opus24"] == 0

    asyncio.run(run())


@pytest.mark.parametrize(
    ("agent", "why"),
    [({"policy": "ppo"}, "no key is set"), ({"policy": "greedy", "policy_key": KEY}, "set here by the owner")],
)
def test_a_device_that_did_not_ask_for_a_policy_takes_none(tmp_path: Path, agent: dict[str, str], why: str) -> None:
    async def run() -> None:
        policy(FEATURES).save(tmp_path / "p.npz")
        async with TinyServer().running() as server:
            server.on_open = lambda session: session.send(push(3))
            config = settings(tmp_path, server.url, {**agent, "policy_file": str(tmp_path / "p.npz")})
            device = runtime(config, "synthetic:10", speed=10)
            await finished(device)
            assert not server.hellos[0].want_policy and why in errors(server)[0].detail
            assert not config.policy_path.exists() and device.policies.version == 0

    asyncio.run(run())


def test_a_kept_policy_that_somebody_changed_is_reported_and_not_used(tmp_path: Path) -> None:
    policy(FEATURES).save(tmp_path / "p.npz")
    agent = {"policy": "ppo", "policy_file": str(tmp_path / "p.npz"), "policy_key": KEY}
    config = settings(tmp_path, "ws://127.0.0.1:9/v1/stream", agent)
    kept = bytearray(sign_policy(KEY, 3, policy(PCM).to_bytes()).to_bytes())
    config.policy_path.parent.mkdir(parents=True)
    for data in (bytes(kept[:20]), bytes(kept[:-1]), bytes([*kept[:-1], kept[-1] ^ 1])):
        config.policy_path.write_bytes(data)
        device = runtime(config, "synthetic:3")
        assert "kept is not used" in device.status().problem
        assert (device.status().policy, device.policies.version) == ("ppo", 0)
        device.queue.close()


def test_the_servers_order_stands_over_a_pushed_policy_until_it_is_given_back(tmp_path: Path) -> None:
    async def run() -> None:
        policy(FEATURES).save(tmp_path / "p.npz")
        agent = {"policy": "ppo", "policy_file": str(tmp_path / "p.npz"), "policy_key": KEY}
        async with TinyServer().running() as server:
            server.on_open = lambda session: session.send(Policy(policy="fixed", cut="0:opus24"))
            device = runtime(settings(tmp_path, server.url, agent), "synthetic", speed=10)
            running_device = asyncio.create_task(device.run())
            await until(lambda: device.counters.cuts["0:opus24"] > 2)
            server.sessions[0].send(push(3))
            await until(lambda: device.policies.version == 3)
            assert device.status().policy == "fixed, by the server's order"
            before = device.counters.cuts["0:opus24"]
            await until(lambda: device.counters.cuts["0:opus24"] > before + 2)
            assert device.counters.cuts["0:pcm16"] == 0
            server.sessions[0].send(Policy(policy="own"))
            await until(lambda: device.counters.cuts["0:pcm16"] > 2)
            assert device.status().policy == "ppo v3, pushed"
            device.stop()
            await running_device

    asyncio.run(run())


def test_a_real_server_pushes_by_its_api_what_a_real_device_then_follows(tmp_path: Path) -> None:
    whole = packaged_table("mobilenet")
    first, second = (policy(cut, whole).to_bytes() for cut in (FEATURES, Cut.parse("6:int8")))
    path = tmp_path / "server.npz"
    path.write_bytes(first)
    config = make_settings(
        tmp_path / "server", policy={"file": str(path), "version": 2, "key": KEY}, auth={"api_token": "t"}
    )
    with running(config) as server:
        values = {
            "device": {"id": "edge-1", "state_dir": str(tmp_path / "state")},
            "server": {"url": f"ws://127.0.0.1:{server.port}/v1/stream", "first_backoff_s": 0.05},
            "training": {"enabled": False},
            "splitting": {
                "agent": {"policy": "ppo", "policy_file": str(tmp_path / "none.npz"), "policy_key": KEY},
                "gate": {"enabled": False},
            },
        }  # fmt: skip

        def post(version: int, data: bytes, token: str = "t") -> httpx.Response:
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            return httpx.post(f"{server.url}/api/policy?version={version}", content=data, headers=headers)

        async def run() -> None:
            device = EdgeRuntime(
                EdgeSettings.from_mapping(values), open_source("synthetic", speed=4), speed=4, table=whole
            )
            running_device = asyncio.create_task(device.run())
            await until(lambda: device.status().policy == "ppo v2, pushed")
            await until(lambda: device.counters.cuts["0:logmel-int8"] > 2)
            for version, data, token, code in (
                (3, second, "", 401), (3, second, "wrong", 401), (2, second, "t", 400), (3, b"no", "t", 400),
                (3, policy(PCM, whole, encoder="resnet18").to_bytes(), "t", 400),
            ):  # fmt: skip
                assert (await asyncio.to_thread(post, version, data, token)).status_code == code
            answer = (await asyncio.to_thread(post, 3, second)).json()
            assert answer == {"version": 3, "devices": 1}
            await until(lambda: device.status().policy == "ppo v3, pushed")
            await until(lambda: device.counters.cuts["6:int8"] > 2)
            device.stop()
            summary = await running_device
            assert math.isfinite(summary.status.regret) and fallbacks_of(device.pipeline.policy) == 0

        asyncio.run(run())
        known = httpx.get(f"{server.url}/api/status", headers={"Authorization": "Bearer t"}).json()
        assert known["policy_version"] == 3 and known["devices"][0]["stats"]["policy"] == "ppo v3, pushed"
    with running(config) as server:  # what came by the API is newer than the settings' file
        assert httpx.get(f"{server.url}/api/policy", headers={"Authorization": "Bearer t"}).json()["version"] == 3


def test_without_an_api_token_nobody_can_post_a_policy(tmp_path: Path) -> None:
    with running(make_settings(tmp_path, policy={"key": KEY})) as server:
        answer = httpx.post(f"{server.url}/api/policy?version=1", content=policy(PCM).to_bytes())
        assert answer.status_code == 403 and "api_token" in answer.json()["detail"]
        assert server.get("/api/policy").json() == {"version": 0, "bytes": 0}
