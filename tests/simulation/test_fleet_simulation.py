"""The fleet simulation against schedules made by hand: one device, queues, a shared server, outages, and its seed."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest

from streamsplit.edge.queue import QueueSettings
from streamsplit.edge.readings import Readings
from streamsplit.errors import ConfigError
from streamsplit.network.trace import BandwidthTrace, constant_trace, generate_trace, make_trace
from streamsplit.simulation.compute import batch_price
from streamsplit.simulation.fleet import DeviceResult, FleetDevice, FleetResult, FleetSettings, FleetSimulation
from streamsplit.simulation.process import DROPPED, KEPT, LOST, SENT
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.link import LinkSettings
from streamsplit.splitting.policy import FixedPolicy, GreedyPolicy, PolicySettings, make_policy
from streamsplit.splitting.table import CutRow, CutTable, make_table, packaged_table
from streamsplit.splitting.transmission import GateSettings
from streamsplit.transport.count import websocket_bytes
from streamsplit.wire.frame import HEADER_BYTES
from streamsplit.wire.media import Encoding
from streamsplit.wire.messages import Result

DEEP, MIDDLE = Cut(13, Encoding.EMBEDDING_FP16), Cut(6, Encoding.INT8)
OPEN = GateSettings(enabled=False)


def table(edge_ms: float = 20.0, server_ms: float = 4.0, payload_bytes: float = 1_000.0) -> CutTable:
    rows = (
        CutRow(Cut(0, Encoding.PCM16), 0.1, 4.0, 16_020, 8.0, 1.0),
        CutRow(MIDDLE, edge_ms, server_ms, payload_bytes, 1.0, 1.0),
        CutRow(DEEP, 2 * edge_ms, 0.1, 280, 1.0, 1.0),
        CutRow(Cut(13, Encoding.NONE), 2 * edge_ms, 0.0, 0, 1.0, 1.0),
    )
    return make_table(CutTable("mobilenet", "host", 1.0, 13, rows, {}))


def device(name: str, uplink: BandwidthTrace, cut: Cut = MIDDLE, **options: object) -> FleetDevice:
    values: dict[str, object] = {"table": table(), "gate": OPEN, "readings": lambda t_s: Readings(0.0, 0.3), **options}
    return FleetDevice(name, policy=FixedPolicy(cut), uplink=uplink, **values)  # type: ignore[arg-type]


def run(devices: list[FleetDevice], duration_s: float, seed: int = 0, **settings: object) -> FleetResult:
    return FleetSimulation(FleetSettings(report_s=0.0, **settings), devices, seed).run(duration_s)  # type: ignore[arg-type]


def up_ms(payload_bytes: int, rate_bps: float) -> float:
    """A window's time on an idle uplink: frame header, masked WebSocket header, payload."""
    return websocket_bytes(HEADER_BYTES + payload_bytes, masked=True) * 8000 / rate_bps


def down_ms(result: Result, rate_bps: float) -> float:
    return websocket_bytes(HEADER_BYTES + len(msgspec.msgpack.encode(result)), masked=False) * 8000 / rate_bps


# -- latency by hand ---------------------------------------------------------------------------------------------


def test_latency_is_the_sum_of_its_parts() -> None:
    """Edge, uplink, half a round trip, the batch's wait, server, commit, result, half a round trip."""
    rate, rtt_ms = 1e6, 60.0
    result = run([device("a", constant_trace(rate, rtt_ms))], 20.0, keep_results=True, commit_ms=2.0)["a"]
    answer = result.results[10]
    expected = 20.0 + up_ms(1_000, rate) + rtt_ms / 2 + 3.0 + 4.0 + 2.0 + down_ms(answer, 4.7 * rate) + rtt_ms / 2
    assert result.latency_ms[10] == pytest.approx(expected, abs=0.01)
    assert np.ptp(result.latency_ms[5:-1]) < 0.5  # but for acknowledgements that a window may meet on the link
    assert (answer.server_ms, answer.queue_ms) == (pytest.approx(4.0), pytest.approx(3.0))


def test_other_work_on_the_device_and_a_slower_unit_stretch_its_time() -> None:
    link = constant_trace(1e6, 60.0)
    idle = run([device("a", link)], 5.0)["a"]
    busy = run([device("a", link, readings=lambda t_s: Readings(0.6, 0.3))], 5.0)["a"]
    other = run([device("a", link, load=lambda t_s: 0.5, edge_factor=3.0)], 5.0)["a"]
    assert idle.edge_ms[3] == pytest.approx(20.0)
    assert busy.edge_ms[3] == pytest.approx(20.0 / 0.4)
    assert other.edge_ms[3] == pytest.approx(120.0)
    assert busy.latency_ms[3] - idle.latency_ms[3] == pytest.approx(30.0, abs=0.1)


def test_a_slow_device_falls_behind_as_lindley_says() -> None:
    """FIFO queue of one server: W(n+1) = max(0, W(n) + S(n) - T). Work varies; nothing else is in the way."""
    work = {0: 0.2, 1: 0.9, 2: 0.9, 3: 0.7, 4: 0.1}  # seconds, by the second in which a window begins
    link = constant_trace(1e9, 0.0)
    load = lambda t_s: 1.0 - 0.1 / work[int(t_s) % 5]  # noqa: E731
    result = run([device("a", link, table=table(edge_ms=100.0), load=load)], 60.0)["a"]
    waited, now = 0.0, 1.1
    for n in range(100):
        begins = now + waited
        spent = 0.1 / (1 - load(begins))
        assert result.edge_ms[n] == pytest.approx(1000 * spent, rel=1e-4)
        latency_ms = 1000 * (waited + spent) + 3.0 + 4.0 + 1.0
        assert result.latency_ms[n] == pytest.approx(latency_ms, abs=0.1)
        waited, now = max(0.0, waited + spent - 0.5), now + 0.5
    assert result.latency_ms[:100].max() > 1_500


def test_a_device_that_cannot_keep_up_loses_its_oldest_audio_and_says_so() -> None:
    result = run([device("a", constant_trace(1e7), table=table(edge_ms=800.0))], 60.0, buffer_s=2.0)["a"]
    counts = result.counts
    assert counts["lost"] > 20 and counts["seen"] == counts["sent"] + counts["lost"]
    processed = result.captured_s[result.action == SENT]
    assert np.all(np.diff(processed) > 0)
    assert np.nanmax(result.latency_ms) < 2_000 + 2 * 800 + 500  # never more than the buffer behind
    names = np.array(result.cut_names())
    assert set(names[result.action == LOST]) == {""}


def test_windows_queue_on_a_slow_link_as_lindley_says() -> None:
    """The link serves one frame after the other; 4 kB a window at 50 kbit/s need longer than a window lasts."""
    rate, rtt_ms, payload = 50_000.0, 40.0, 4_000
    slow = device("a", constant_trace(rate, rtt_ms), table=table(payload_bytes=payload, edge_ms=10.0))
    unprobed = LinkSettings(probe_lead_ms=0.0)  # such probes would stand in the queues as well; the keep-alive's do
    result = run([slow], 20.0, gmm_every_windows=0, keep_results=True, link=unprobed)["a"]
    service, waited = up_ms(payload, rate), 0.0
    for n in range(6):
        answer = result.results[n]
        fixed = 10.0 + service + rtt_ms + 3.0 + 4.0 + 1.0 + down_ms(answer, 4.7 * rate)
        # an acknowledgement of results takes 16 ms of this uplink once a second, one of windows 3 ms of the downlink, a
        # probe every two seconds 8 ms of the uplink
        assert result.latency_ms[n] == pytest.approx(waited + fixed + 12.0 * (n > 1), abs=14.0)
        waited = max(0.0, waited + service - 500.0)
    assert result.backlog_bytes[15] > 3 * payload


# -- the server --------------------------------------------------------------------------------------------------


def test_two_devices_share_a_batch_that_costs_less_than_two() -> None:
    link = constant_trace(1e9, 0.0)
    fleet = [device(name, link, gate=OPEN) for name in ("a", "b")]
    both = run(fleet, 10.0, gmm_every_windows=0)
    alone = run(fleet[:1], 10.0, gmm_every_windows=0)
    price = batch_price(table(), MIDDLE)
    assert price.fixed_ms + price.each_ms == pytest.approx(4.0)
    assert both.server_windows == 2 * both.server_batches
    assert both["a"].latency_ms[4] - alone["a"].latency_ms[4] == pytest.approx(price.each_ms, abs=0.01)
    assert 64 / (price.fixed_ms + 64 * price.each_ms) / (1 / 4.0) == pytest.approx(
        3.58, abs=0.01
    )  # measured at block 6


def test_windows_that_miss_a_batch_wait_for_the_thread() -> None:
    """By hand, in ms after a's window arrives at the server: a is taken at 3 and done at 43; b arrives at 10, c at 20,
    and both have waited their 3 ms by 43: one batch, done at 43 + price of two. d, deeper, is taken with them and comes
    first."""
    link, slow = constant_trace(1e9, 0.0), table(server_ms=40.0)
    offsets = {"a": 0.0, "b": 0.010, "c": 0.020}
    fleet = [device(name, link, table=slow, start_s=offset) for name, offset in offsets.items()]
    fleet.append(device("d", link, DEEP, table=slow, start_s=0.015 - 0.020))  # its edge takes 20 ms longer
    result = run([d for d in fleet if d.name != "d"], 10.0, gmm_every_windows=0, commit_ms=0.0)
    price = batch_price(slow, MIDDLE)
    together = price.fixed_ms + 2 * price.each_ms
    got = {name: float(result[name].latency_ms[4]) - 20.0 for name in "abc"}
    assert got["a"] == pytest.approx(43.0, abs=0.05)
    assert got["b"] == pytest.approx(43.0 - 10.0 + together, abs=0.05)
    assert got["c"] == pytest.approx(43.0 - 20.0 + together, abs=0.05)
    fleet[-1].start_s = 0.0
    fleet[-1].edge_factor = 0.5 + 0.015 / 0.040  # computed 35 ms after its capture: 15 ms after a
    result = run(fleet, 10.0, gmm_every_windows=0, commit_ms=0.0)
    assert float(result["d"].latency_ms[4]) - 35.0 == pytest.approx(43.0 - 15.0 + 0.1, abs=0.05)
    assert float(result["b"].latency_ms[4]) - 20.0 == pytest.approx(43.0 - 10.0 + 0.1 + together, abs=0.05)


def test_an_overloaded_server_throttles_and_every_window_is_answered_once() -> None:
    """Ten devices of 2 windows/s against a thread that needs 200 ms for each: what waits is bounded, no window lost."""
    heavy = table(server_ms=800.0)
    fleet = [device(f"d{i}", constant_trace(1e7, 20.0), table=heavy) for i in range(10)]
    limits = FleetSettings().limits.replace(max_waiting=40)
    result = run(fleet, 120.0, keep_results=True, limits=limits)
    for one in result.devices.values():
        answered = np.flatnonzero(~np.isnan(one.latency_ms))
        assert list(answered) == list(range(len(answered)))  # in order, none left out
        assert sorted(one.results) == list(answered)
        assert one.left_in_queue > 100
    assert result.server_busy_share > 0.98


# -- links that fail ---------------------------------------------------------------------------------------------


def outage(start_s: float, length_s: float) -> BandwidthTrace:
    return make_trace([0.0, start_s, start_s + length_s], [2e6, 0.0, 2e6], 40.0, duration_s=1_000.0)


def once(result: DeviceResult, until: int) -> None:
    """Every window up to `until` was answered, once."""
    assert not np.isnan(result.latency_ms[:until]).any()
    assert set(range(until)) <= set(result.results)


def test_a_session_survives_an_outage_that_is_shorter_than_its_silence() -> None:
    result = run([device("a", outage(20.0, 15.0))], 60.0, keep_results=True)["a"]
    once(result, 110)
    assert result.connections == 1
    during = (result.captured_s > 20.5) & (result.captured_s < 34.0)
    expected = 1000 * (35.0 - result.captured_s[during])  # what was heard in the tunnel arrives right after it
    assert np.all(np.abs(result.latency_ms[during] - expected) < 600)
    assert result.latency_ms[-10] < 200


def test_after_a_long_outage_the_device_resumes_and_nothing_is_lost_or_sent_for_ever() -> None:
    for length_s, resumed in ((50.0, True), (200.0, False)):  # within, and beyond the time that a session is kept
        result = run([device("a", outage(20.0, length_s))], 60.0 + length_s, keep_results=True)["a"]
        once(result, int(2 * (40.0 + length_s)))
        assert result.connections == 2, resumed
        # windows under way at the break crossed twice, no more than a credit's worth of them
        payload = int(result.payload_bytes.sum())
        assert payload < result.uplink_bytes < 1.15 * payload + 80 * 1_100


def test_a_full_queue_drops_the_newest_and_the_rest_goes_up_later() -> None:
    queue = QueueSettings(max_windows=20)
    result = run([device("a", outage(10.0, 25.0))], 60.0, queue=queue, keep_results=True)["a"]
    counts = result.counts
    assert counts["dropped"] > 20
    assert not np.isnan(result.latency_ms[(result.action == SENT) & (result.captured_s < 55.0)]).any()
    assert np.isnan(result.latency_ms[result.action == DROPPED]).all()


def test_a_modem_that_is_full_holds_the_sender_up() -> None:
    """Head of line: what was handed over before the link turned poor must leave first; what waits is in the queue, so
    that at most the modem's backlog and a frame lie between a new decision and the link."""
    poor = make_trace([0.0, 10.0], [8e6, 0.1e6], 40.0, duration_s=1_000.0)
    result = run([device("a", poor, Cut(0, Encoding.PCM16))], 60.0, backlog_bytes=32_768)["a"]
    late = np.flatnonzero(~np.isnan(result.latency_ms))[-1]
    assert result.latency_ms[late] > 2_000 and np.nanmax(result.backlog_bytes) > 3 * 32_768
    # a window each 1.3 s leaves the poor link, in order
    arrived = (result.captured_s + result.latency_ms / 1000)[22:late]
    assert np.allclose(np.diff(arrived), websocket_bytes(16_036, masked=True) * 8 / 0.1e6, atol=0.1)


# -- bytes, gate, energy -----------------------------------------------------------------------------------------


def test_block_0_sends_what_is_new_and_the_whole_window_after_a_kept_one() -> None:
    link = constant_trace(1e7)
    all_sent = run([device("a", link, Cut(0, Encoding.PCM16))], 20.0)["a"]
    assert list(all_sent.payload_bytes[:4]) == [32_020, 16_020, 16_020, 16_020]
    gate = GateSettings(warm_up_windows=2, memory_windows=16)
    some = run([device("a", link, Cut(0, Encoding.PCM16), gate=gate)], 60.0)["a"]
    kept = np.flatnonzero(some.action == KEPT)
    assert len(kept) > 20
    after = [n for n in range(1, len(some.action)) if some.action[n] == SENT]
    assert all(some.payload_bytes[n] == (32_020 if some.action[n - 1] == KEPT else 16_020) for n in after)
    assert set(some.cut_names()) == {"0:pcm16", "0:none"}


def test_on_a_poor_link_the_gate_sends_embeddings_alone() -> None:
    gate = GateSettings(warm_up_windows=10_000, low_bps=7e6)  # above any estimate of this link
    result = run([device("a", constant_trace(0.3e6), gate=gate, table=table(payload_bytes=2_000))], 20.0)["a"]
    assert result.cut_names()[0] == "6:int8" and set(result.cut_names()[1:]) == {"13:embedding-fp16"}


def test_energy_is_that_of_the_device_model() -> None:
    one = device("a", constant_trace(1e7), table=packaged_table("mobilenet", "pi4"))
    result = run([one], 10.0)["a"]
    row = one.table.row(MIDDLE)
    from streamsplit.splitting.device import device_profile

    expected = device_profile("pi4").energy_mj(row.edge_ms, HEADER_BYTES + round(row.payload_bytes))
    np.testing.assert_allclose(result.energy_mj, expected, rtol=1e-5)


# -- the estimator and the seed ----------------------------------------------------------------------------------


def test_the_estimate_follows_a_step_only_after_acknowledgements() -> None:
    step = make_trace([0.0, 30.0], [8e6, 1e6], 40.0, duration_s=1_000.0)
    result = run([device("a", step, Cut(0, Encoding.PCM16))], 60.0)["a"]
    before = result.bandwidth_bps[(result.captured_s > 20) & (result.captured_s < 30)]
    first = int(np.flatnonzero(result.captured_s >= 30.0)[0])
    settled = result.bandwidth_bps[first + 20 :]
    assert np.all(np.abs(before / 8e6 - 1) < 0.25)
    assert result.bandwidth_bps[first] > 0.75 * 8e6  # nothing has told it yet
    assert np.all(np.abs(settled / 1e6 - 1) < 0.25)


def fleet(seed: int, **settings: object) -> FleetResult:
    """Six devices with two policies on links that dip; one has an outage longer than its silence."""
    made = []
    for number in range(6):
        policy = make_policy(PolicySettings(name=("greedy", "heuristic")[number % 2]))
        trace = generate_trace(200.0, number, rate_scale=0.1)
        if number == 3:
            trace = trace.with_outage(40.0, 70.0)
        made.append(
            FleetDevice(
                f"d{number}", packaged_table("mobilenet", "pi4"), policy, trace, jitter_ms=5.0, start_s=0.07 * number
            )
        )
    return FleetSimulation(FleetSettings(**settings), made, seed).run(150.0)  # type: ignore[arg-type]


def same(one: FleetResult, other: FleetResult) -> bool:
    """Bit for bit, but for what counts events."""
    return all(
        a.tobytes() == b.tobytes() if isinstance(a, np.ndarray) else a == b
        for name, result in one.devices.items()
        for a, b in zip(result, other[name], strict=True)
    )


def test_the_same_seed_gives_the_same_run_bit_for_bit_and_another_seed_another() -> None:
    first, again, other = fleet(3), fleet(3), fleet(4)
    assert same(first, again) and (first.events, first.server_batches) == (again.events, again.server_batches)
    assert not same(first, other)


def test_counted_frames_and_encoded_ones_give_the_same_run_bit_for_bit() -> None:
    """Cuts, latencies, estimates, and bytes on every socket."""
    counted, frames = fleet(5, wire="counted"), fleet(5, wire="frames")
    assert same(counted, frames)
    assert counted["d3"].connections == 2 and counted.events == frames.events


def test_a_device_without_an_encoder_uses_block_0_only() -> None:
    bare = FleetDevice("a", table(), GreedyPolicy(), constant_trace(4e6), has_encoder=False)
    result = run([bare], 20.0)["a"]
    assert set(result.block) == {0}


def test_names_must_differ() -> None:
    with pytest.raises(ConfigError, match="one name each"):
        FleetSimulation(FleetSettings(), [device("a", constant_trace(1e6))] * 2)
    with pytest.raises(ConfigError, match="stride_s"):
        FleetSettings(stride_s=2.0)
    assert math.isinf(device("a", constant_trace(1e6)).stop_s)
