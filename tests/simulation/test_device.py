"""One device in virtual time: latencies by hand, queues by Lindley's recursion, and what else is known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from device_cases import ACTION, COSTS, OBJECTIVE, PI4, QUIET, TABLE, bursty_load, simulated, small_table, step_trace

from streamsplit.errors import CutError
from streamsplit.network.trace import constant_trace, generate_trace
from streamsplit.simulation.conditions import SimulationSettings
from streamsplit.simulation.device import (
    ACK_BYTES,
    EMBEDDING_BYTES,
    LEAST_CAPACITY,
    RESULT_BYTES,
    SimulatedDevice,
    Step,
)
from streamsplit.simulation.load import make_load, step_load
from streamsplit.wire.frame import HEADER_BYTES

HEADERS = HEADER_BYTES + 8  # a frame's and a WebSocket message's
ANSWER = RESULT_BYTES + EMBEDDING_BYTES + ACK_BYTES


def run(device: SimulatedDevice, actions: list[str] | str) -> list[Step]:
    """Takes these cuts, one a window; a single one is taken until the end."""
    steps = []
    while not device.done:
        device.observe()
        text = actions if isinstance(actions, str) else actions[device.index % len(actions)]
        steps.append(device.step(ACTION[text]))
    return steps


def test_a_windows_latency_is_the_sum_worked_out_by_hand():
    (step,) = run(simulated(1e6, 0.5, windows=1), "2:int8")
    compute = 13.0 / 0.5
    up = (4_000 + HEADERS) * 8 / 1e6 * 1000 + 30.0  # rate, then half of the round trip
    down = ANSWER * 8 / 4.7e6 * 1000 + 30.0
    assert step.consequence.latency_ms == pytest.approx(compute + up + 6.5 + down, abs=1e-6)
    assert (step.uplink_bytes, step.downlink_bytes) == (4_000 + HEADERS, ANSWER)
    assert step.consequence.energy_mj == pytest.approx(PI4.energy_mj(13.0, 4_000 + HEADERS))
    assert step.consequence.traffic_bytes == 4_000 + HEADERS and step.consequence.quality_loss == pytest.approx(0.02)
    assert step.reward == pytest.approx(
        10 * 0.98 - 5 * step.consequence.latency_ms / 200 - 3 * step.consequence.energy_mj / 100 - 4 * 4024 / 1500
    )


def test_a_window_that_is_kept_takes_what_computing_takes():
    (step,) = run(simulated(1e6, 0.75, windows=1), "4:none")
    assert step.consequence.latency_ms == pytest.approx(27.5 / 0.25)
    assert (step.uplink_bytes, step.downlink_bytes, step.consequence.seen) == (0, 0, False)
    doubt = step.consequence.doubt
    assert step.reward == pytest.approx(10 - 2.5 * 1.1 - 3 * PI4.compute_mj(27.5) / 100 - 3 * (0.2 + 0.8 * doubt))


def test_the_servers_load_scales_its_time_only():
    one, three = (
        run(simulated(1e6, settings=QUIET.replace(server_load=load), windows=1), "0:opus24")[0] for load in (1.0, 3.0)
    )
    assert three.consequence.latency_ms - one.consequence.latency_ms == pytest.approx(2 * 14.0)


def test_windows_queue_for_processor_and_link_as_lindley_says():
    """W[n+1] = max(W[n] + S[n] - T[n], 0), for both of them one behind the other."""
    rng = np.random.default_rng(0)
    slow = small_table(20.0)
    texts = [str(rng.choice(["2:int8", "3:int8", "4:embedding-int8"])) for _ in range(60)]
    device = simulated(60e3, 0.2, table=slow, windows=60)
    steps = run(device, texts)
    edge = np.array([20.0 * COSTS[text][0] for text in texts]) / 0.8
    send = np.array([(COSTS[text][2] + HEADERS) * 8 / 60e3 * 1000 for text in texts])
    server = np.array([COSTS[text][1] for text in texts])
    waits, lags, ready_before, compute_wait, link_wait = [], [], None, 0.0, 0.0
    for n in range(60):
        ready = n * 500.0 + compute_wait + edge[n]
        if ready_before is not None:
            link_wait = max(link_wait + send[n - 1] - (ready - ready_before), 0.0)
        waits.append(compute_wait + edge[n] + link_wait + send[n])
        lags.append(compute_wait)
        compute_wait, ready_before = max(compute_wait + edge[n] - 500.0, 0.0), ready
    answers = np.array([ANSWER - (EMBEDDING_BYTES if "4:" in text else 0) for text in texts]) * 8 / (4.7 * 60e3) * 1000
    latencies = [step.consequence.latency_ms for step in steps]
    assert max(lags) > 500.0 and max(waits) > 2000.0  # it does queue, for both
    assert latencies == pytest.approx((np.array(waits) + 60.0 + server + answers).tolist(), abs=1e-3)


def test_what_waits_is_what_was_sent_and_not_acknowledged_yet():
    device, rng, sent = simulated(80e3, windows=80), np.random.default_rng(1), []
    for _ in range(80):
        now_s = device.now_s
        expected = sum(size for size, acked_s in sent if acked_s > now_s)
        assert device.observe().backlog_bytes == expected
        t_s = device.index * 0.5
        step = device.step(ACTION[str(rng.choice(["2:int8", "0:opus24", "4:none"]))])
        if step.uplink_bytes:
            sent.append((step.uplink_bytes, t_s + step.consequence.latency_ms / 1000 + 0.025))
    assert max(size for size, _ in sent) < sum(size for size, acked in sent if acked > 20.0)  # more than one waited
    busy_s = sum(size for size, _ in sent) * 8 / 80e3
    assert device.uplink.free_at_s >= busy_s  # no byte took less time than the link gives it


def test_no_byte_is_lost_or_made_on_the_way():
    device = simulated(1e6, windows=50)
    steps = run(device, ["2:int8", "4:none", "0:opus24", "4:embedding-int8"])
    device.windows += 40
    for _ in range(40):  # nothing more is sent: everything comes back
        device.doubts.append(0.5)
        device.waits_ms.append(0.0)
        device.observe()
        device.step(ACTION["4:none"])
    assert device.observe().backlog_bytes == 0
    heard = [e for e in device.experiences if e.cut.sends]
    assert len(heard) == sum(step.uplink_bytes > 0 for step in steps)
    assert [e.latency_ms for e in heard] == [step.consequence.latency_ms for step in steps if step.uplink_bytes]


def test_the_first_window_of_sound_crosses_whole_then_only_what_is_new():
    def sizes(texts: list[str]) -> list[int]:
        return [step.uplink_bytes for step in run(simulated(1e7, windows=len(texts)), texts)]

    opus, features = 1_520 + HEADERS, 6_420 + HEADERS
    assert sizes(["0:opus24"] * 3) == [1_520 + opus, opus, opus]
    assert sizes(["0:opus24", "4:none", "0:opus24", "0:opus24"]) == [1_520 + opus, 0, 1_520 + opus, opus]
    assert sizes(["0:opus24", "2:int8", "0:opus24"]) == [1_520 + opus, 4_000 + HEADERS, 1_520 + opus]
    assert sizes(["0:opus24", "0:logmel-int8"]) == [1_520 + opus, features]  # the server makes features of sound
    assert sizes(["0:logmel-int8", "0:opus24"]) == [6_420 + features, 1_520 + opus]  # but no sound of features


@pytest.mark.parametrize("start_s", [0.0, 0.234])
def test_work_under_a_changing_load_equals_a_slow_integration(start_s):
    load = bursty_load(3, seconds=20.0, most=1.0)
    table = small_table(8.0)
    device = simulated(1e9, load, table=table, windows=38, load_start_s=start_s)
    steps = run(device, ["2:int8", "4:none", "3:int8"])
    step_s, now = 1e-4, 0.0
    for step in steps:
        t_s = steps.index(step) * 0.5
        now, left = max(now, t_s), table.row(step.cut).edge_ms / 1000
        while left > 0:
            left -= step_s * max(1.0 - load.share[int((now + start_s) / 0.1 + 1e-6) % len(load.share)], LEAST_CAPACITY)
            now += step_s
        if not step.consequence.seen:
            assert step.consequence.latency_ms == pytest.approx((now - t_s) * 1000, abs=3.0)
    assert device.free_s == pytest.approx(now, abs=3e-3)


def test_a_device_that_falls_behind_by_more_than_its_buffer_loses_windows():
    """800 ms of work every 500 ms: after 5 s of lag, five of eight windows are done, as many as there is time for."""
    slow = small_table(800.0 / 27.5)
    steps = run(simulated(1e6, table=slow, windows=400), "4:none")
    lost = [step.lost for step in steps]
    assert lost.index(True) == 17  # 17 x 0.3 s = 5.1 s behind
    assert sum(lost[80:]) / 320 == pytest.approx(3 / 8, abs=0.02)
    gone = next(step for step in steps if step.lost)
    assert gone.consequence.quality_loss == 1.0 and math.isinf(gone.consequence.latency_ms)
    assert gone.reward == pytest.approx(-25.0 - 3 * (0.2 + 0.8 * gone.consequence.doubt))


def test_a_hot_processor_slows_down_and_is_fast_again_when_it_has_cooled():
    load = step_load(0.95, 0.1, at_s=200.0, duration_s=400.0)
    device = simulated(1e6, load, windows=800)
    steps = run(device, "0:logmel-int8")  # 1 ms: what it adds to the load itself is nothing
    thermal, throttled, expected = 0.0, False, []
    for n in range(800):
        expected.append(throttled)
        keep = math.exp(-0.5 / 60)
        thermal = keep * thermal + (1 - keep) * load.at(n * 0.5)
        throttled = thermal > (0.80 if throttled else 0.85)
    compute = [step.consequence.latency_ms for step in steps]
    fast, slow = compute[10], compute[390]
    assert slow - fast == pytest.approx(1.0 / LEAST_CAPACITY * (1 / 0.6 - 1), abs=0.01)
    seen = [False] + [value > (fast + slow) / 2 for value in compute[1:400]]  # the first one crosses whole
    assert abs(seen.index(True) - expected.index(True)) <= 2
    assert abs(expected.index(True) * 0.5 - 60 * math.log(0.95 / 0.10)) < 1.0  # 0.95 (1 - e^-t/60) = 0.85
    assert not device.throttled and not expected[-1]


def test_a_battery_holds_for_as_long_as_its_energy_lasts():
    settings = QUIET.replace(battery_wh=0.5, battery_level=0.9)
    device = simulated(1e6, 0.3, settings, windows=400)
    steps = run(device, ["2:int8", "4:none"])
    power_mw = (PI4.idle_w + 0.3 * PI4.cpu_w + PI4.radio.connected_w) * 1000
    used_j = power_mw / 1000 * 200.0 + sum(step.consequence.energy_mj for step in steps) / 1000
    assert device.battery == pytest.approx(0.9 - used_j / (0.5 * 3600), rel=1e-9)
    assert simulated().battery == 1.0
    assert simulated(settings=settings.replace(battery_wh=0.01, battery_level=0.05), windows=400).battery == 0.05


def test_the_mean_power_is_the_one_that_constraints_count():
    from streamsplit.splitting.constraints import ConstraintSettings

    limits, power = ConstraintSettings(energy_window_s=20.0), 0.0
    device = simulated(1e6, settings=QUIET.replace(energy_window_s=20.0), windows=60)
    for text in ["2:int8", "4:none", "0:opus24"] * 20:
        assert device.observe().power_mw == pytest.approx(power)
        power = limits.next_power_mw(power, device.step(ACTION[text]).consequence.energy_mj)


def test_missing_weights_are_fetched_once_and_count_as_traffic():
    device = simulated(1e6, settings=QUIET.replace(blocks=2), windows=6)
    steps = run(device, ["2:int8", "3:int8", "3:int8", "4:none", "3:int8", "4:none"])
    fetched = [step.downlink_bytes - (ANSWER if step.cut.sends else 0) for step in steps]
    assert fetched == [0, 60_000, 0, 60_000, 0, 0]  # what blocks 1..3 take over 1..2, and 1..4 over 1..3
    assert steps[3].consequence.traffic_bytes == pytest.approx(60_000, abs=RESULT_BYTES + EMBEDDING_BYTES + ACK_BYTES)
    transfer = 60_000 * 8 / 4.7e6 * 1000 + 60.0
    assert steps[3].consequence.latency_ms - steps[5].consequence.latency_ms == pytest.approx(transfer, abs=1e-6)
    assert device.observe().blocks == 4


def test_blocks_between_two_rows_of_the_table_do_not_cost_again_what_is_held():
    part = TABLE.only([TABLE.cuts[ACTION[text]] for text in ("2:int8", "4:none")])
    device = SimulatedDevice(part, PI4, constant_trace(1e6, 60.0), make_load([0.0]), QUIET.replace(blocks=3), windows=1)
    device.observe()
    assert device.step(1).downlink_bytes == 160_000 - 40_000  # block 3's share is not known, blocks 1 and 2's is


def test_a_fetch_does_not_wait_for_results_that_come_later():
    """Windows that are stuck in the uplink do not hold up the downlink."""
    device = simulated(20e3, settings=QUIET.replace(blocks=2), windows=12)
    steps = run(device, ["2:int8"] * 10 + ["4:none", "4:none"])
    assert steps[9].consequence.latency_ms > 10_000
    assert steps[10].consequence.latency_ms == pytest.approx(27.5 + 120_000 * 8 / (4.7 * 20e3) * 1000 + 60.0, abs=1e-3)


def test_the_same_seed_is_the_same_run_and_another_one_is_not():
    def episode(seed: int) -> list[Step]:
        device = simulated(generate_trace(60, 5), bursty_load(1), QUIET.replace(server_wait_ms=5.0), seed=seed)
        return run(device, ["2:int8", "0:opus24", "4:embedding-int8", "4:none"])

    assert episode(3) == episode(3)
    assert episode(3) != episode(4)


@pytest.mark.parametrize(("before", "after"), [(8e6, 1e6), (1e6, 8e6), (1e6, 2e5)])
def test_after_a_step_in_rate_the_estimate_follows_within_some_windows(before, after):
    device = simulated(step_trace(before, after, at_s=30.25), windows=120)
    estimates = []
    while not device.done:
        estimates.append(device.observe().bandwidth_bps)
        device.step(ACTION["2:int8"])
    assert estimates[60] == pytest.approx(before, rel=0.25)  # the step is seen after it happened, not before
    assert abs(math.log(estimates[61] / before)) < abs(math.log(after / before)) + 0.3
    late = next(n for n in range(61, 120) if abs(estimates[n] / after - 1) < 0.3)
    assert 61 < late <= 75
    assert estimates[-1] == pytest.approx(after, rel=0.15)


def test_on_a_dead_link_windows_that_cross_are_late_for_ever_and_the_device_notices():
    device = simulated(0.0, windows=200)
    steps = run(device, ["2:int8", "4:none"])
    assert all(math.isinf(step.consequence.latency_ms) for step in steps[::2])
    assert steps[0].reward == pytest.approx(
        10 * 0.98 - 25 - 3 * steps[0].consequence.energy_mj / 100 - 4 * (4_000 + HEADERS) / 1500
    )
    assert not device.observe().link_up and device.observe().backlog_bytes == 100 * (4_000 + HEADERS)
    assert len(device.experiences) == 100 and not any(e.cut.sends for e in device.experiences)


def test_weights_that_never_come_are_a_lost_window_and_not_the_end():
    device = simulated(0.0, settings=QUIET.replace(blocks=2), windows=4)
    steps = run(device, ["4:none", "2:int8", "4:none", "2:int8"])
    assert [step.lost for step in steps] == [True, False, True, False]
    assert device.observe().blocks == 2


def test_a_silent_device_on_a_dead_link_hears_no_answer_to_its_probes():
    trace = step_trace(1e6, 0.0, at_s=15.0, duration_s=1e5)
    device = simulated(trace, settings=QUIET.replace(ping_interval_ms=2_000.0), windows=400)
    ages = []
    while not device.done:
        ages.append(device.observe().rtt_age_ms)
        device.step(ACTION["4:none"])
    assert max(ages[:25]) <= 2_600 and ages[-1] > 180_000


def test_peek_is_what_a_step_brings_where_nothing_is_lost():
    rng, worst = np.random.default_rng(0), 0.0
    device = simulated(generate_trace(60, 2)._replace(loss=None), bursty_load(2), windows=120)
    while not device.done:
        device.observe()
        action = int(rng.integers(len(TABLE.rows)))
        expected = device.peek(action)
        worst = max(worst, abs(device.step(action).reward - expected))
    assert worst < 0.02  # the answer's way down is not foreseen: its 446 bytes take a millisecond


def test_loss_makes_latencies_longer_and_never_shorter():
    trace = generate_trace(60, 4)
    trace = trace._replace(loss=np.full(len(trace.t_s), 0.3))
    latencies = [
        [step.consequence.latency_ms for step in run(simulated(link, windows=100), "4:embedding-int8")]
        for link in (trace, trace._replace(loss=None))
    ]
    late = np.array(latencies[0]) - np.array(latencies[1])
    assert late.min() >= -1e-6 and (late > 50).sum() >= 10


def test_uncertainties_have_the_stated_mean_spread_and_memory():
    settings = QUIET.replace(uncertainty_mean=0.5, uncertainty_sd=0.1, uncertainty_memory=0.7)
    doubts = np.array(simulated(settings=settings, windows=20_000).doubts)
    assert doubts.mean() == pytest.approx(0.5, abs=0.01) and doubts.std() == pytest.approx(0.1, abs=0.005)
    assert np.corrcoef(doubts[:-1], doubts[1:])[0, 1] == pytest.approx(0.7, abs=0.03)
    device = simulated(windows=3)
    for n in range(3):
        seen = device.observe().uncertainty  # of the window before
        assert seen == pytest.approx(device.doubts[n] * OBJECTIVE.full_uncertainty)
        assert device.doubt == device.step(0).consequence.doubt == device.doubts[n + 1]


def test_rows_that_are_none_and_windows_past_the_end_are_refused():
    device = simulated(windows=1)
    device.observe()
    for action in (-1, len(TABLE.rows)):
        with pytest.raises(CutError, match=r"expected 0\.\.8, a row of the table"):
            device.step(action)
    device.step(0)
    with pytest.raises(CutError, match="the run is over"):
        device.step(0)
    with pytest.raises(CutError, match="without rows"):
        simulated(table=TABLE._replace(rows=()))
    assert SimulationSettings().stride_ms == 500.0
