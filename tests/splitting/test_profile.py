"""Profiling: every cut has a row, bytes are those of the packers, agreement is what the cut does to the embedding."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import WindowStream
from streamsplit.codec.features import pack_features, unpack_features
from streamsplit.encoders.bottleneck import fit_bottlenecks
from streamsplit.encoders.crossing import pack_crossing, unpack_crossing
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.encoders.projection import fit_exits, fit_projection
from streamsplit.errors import CutError
from streamsplit.splitting.cut import Cut, all_cuts
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.profile import WARM_UP, Stopwatch, profile_encoder
from streamsplit.splitting.quality import sure_windows
from streamsplit.wire.media import MEDIA_HEADER_BYTES, Encoding


@pytest.fixture(scope="module")
def windows():
    return WindowStream().push(Soundscape(3).read(16_000 * 4))


@pytest.fixture(scope="module")
def heard():
    return WindowStream().push(Soundscape(8, mean_segment_s=3.0).read(16_000 * 40))


@pytest.fixture(scope="module")
def encoder(heard):
    made = make_encoder(EncoderSettings(width=0.25, embedding_dim=32))
    features = np.stack([window.features for window in heard])
    fit_projection(made, features)
    fit_exits(made, features)
    fit_bottlenecks(made, features)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def table(encoder, windows):
    seen = []
    made = profile_encoder(encoder, device_profile("pi4"), windows, 9, progress=lambda *at: seen.append(at))
    cuts = len(all_cuts(encoder.num_blocks, encoder.bottlenecks))
    assert seen == [(done, cuts) for done in range(1, cuts + 1)]
    return made


def test_every_cut_has_a_row_with_times_and_energy(encoder, table):
    assert table.cuts == tuple(sorted(all_cuts(encoder.num_blocks, encoder.bottlenecks)))
    assert table.encoder == "mobilenet" and table.device == "pi4" and table.factor == 11.7
    pi = device_profile("pi4")
    for row in table.rows:
        assert row.edge_ms > 0
        assert row.energy_mj == pytest.approx(pi.energy_mj(row.edge_ms, row.payload_bytes))
        assert (row.server_ms > 0) == row.cut.sends
    assert table.meta["windows"] == 5 and table.meta["stride_frames"] == 50


def test_every_deeper_cut_costs_the_device_more_and_the_server_less(encoder, table):
    for encoding in (Encoding.FP32, Encoding.FP16, Encoding.INT8):
        rows = [row for row in table.rows if row.cut.encoding is encoding]
        packed = max(abs(row.edge_ms) for row in rows) * 0.05  # packing may differ: maps get smaller
        for shallow, deep in pairwise(rows):
            assert deep.edge_ms > shallow.edge_ms - packed and deep.server_ms < shallow.server_ms
        assert rows[-1].edge_ms > 1.5 * rows[0].edge_ms
    assert table.row(Cut(0, Encoding.PCM16)).edge_ms < table.row(Cut(1, Encoding.FP32)).edge_ms
    none, sent = (table.row(Cut.parse(f"13:{name}")) for name in ("none", "embedding-fp16"))
    assert sent.edge_ms > none.edge_ms


def test_times_are_scaled_to_a_reference_core_when_asked(encoder, windows):
    made = profile_encoder(encoder, device_profile("pi4"), windows[:3], 20, reference_ms=4.0)
    server = made.row(Cut.parse("1:fp32")).server_ms
    edge = made.row(Cut.parse("13:none")).edge_ms / 11.7
    assert edge > 4.0 > server and made.meta["reference"]["uncut_ms"] == 4.0
    raw = made.meta["reference"]["uncut_ms_as_measured"]
    plain = profile_encoder(encoder, device_profile("host"), windows[:3], 20).row(Cut.parse("13:none")).edge_ms
    assert 0.3 < plain / raw < 3.0  # two measurements of one thing on a machine that may be busy


def test_a_busy_moment_of_the_machine_does_not_count():
    busy = iter([3] * WARM_UP + [1, 40, 1, 40, 1, 40, 1, 40, 1, 40])

    def work(_: int) -> None:
        sum(range(20_000 * next(busy)))

    quiet = iter([1] * 100)
    (measured,) = Stopwatch(3, 10).times_ms([work])
    (alone,) = Stopwatch(3, 10).times_ms([lambda _: sum(range(20_000 * next(quiet)))])
    assert measured < 5 * alone


def test_bytes_are_what_the_packers_make_of_the_new_half_of_a_window(encoder, windows, table):
    def size(text: str) -> float:
        return table.row(Cut.parse(text)).payload_bytes - MEDIA_HEADER_BYTES

    assert size("0:pcm16") == 2 * 8_000
    new = windows[1].features[:, 50:]
    assert size("0:logmel-int8") == len(pack_features(new, Encoding.LOGMEL_INT8))
    with torch.no_grad():
        crossing = encoder.forward_to(torch.from_numpy(windows[1].features)[None], 5)
    assert size("5:fp16") == len(pack_crossing(crossing, Encoding.FP16))
    assert size("13:embedding-fp16") == 4 + 2 * 32
    assert table.row(Cut.parse("13:none")).payload_bytes == 0
    assert 0.4 * 1500 < size("0:opus24") < 1.6 * 1500  # half a second at 24 kbit/s


def test_agreement_is_the_mean_cosine_with_the_full_path(encoder, windows, table):
    with torch.no_grad():
        inputs = [torch.from_numpy(window.features)[None] for window in windows[1:]]
        full = [encoder(x)[0].numpy() for x in inputs]
        crossed = [
            encoder.forward_from(unpack_crossing(pack_crossing(encoder.forward_to(x, 3), Encoding.INT8)), 3)[0].numpy()
            for x in inputs
        ]
    expected = np.mean([a @ b for a, b in zip(full, crossed, strict=True)])
    assert table.row(Cut.parse("3:int8")).agreement == pytest.approx(expected, abs=1e-6)
    again = [unpack_features(pack_features(window.features, Encoding.LOGMEL_INT8)) for window in windows[1:]]
    with torch.no_grad():
        coded = [encoder(torch.from_numpy(features)[None])[0].numpy() for features in again]
    expected = np.mean([a @ b for a, b in zip(full, coded, strict=True)])
    assert table.row(Cut.parse("0:logmel-int8")).agreement == pytest.approx(expected, abs=1e-6)


def test_exact_cuts_agree_and_lossy_ones_less(encoder, table):
    for row in table.rows:
        if row.cut.encoding in (Encoding.FP32, Encoding.NONE):
            assert row.agreement == pytest.approx(1.0, abs=1e-5)
        elif row.cut.encoding in (Encoding.PCM16, Encoding.FP16, Encoding.LOGMEL_FP16):
            assert row.agreement > 0.999
    assert table.row(Cut.parse("0:opus24")).agreement < table.row(Cut.parse("0:pcm16")).agreement


def test_a_bottleneck_has_its_row(encoder, windows, table):
    bottleneck = encoder.bottlenecks[5]
    with torch.no_grad():
        crossings = [encoder.forward_to(torch.from_numpy(window.features)[None], 5) for window in windows[1:]]
        payloads = [pack_crossing(crossing, Encoding.BOTTLENECK_INT8, bottleneck) for crossing in crossings]
        z = [encoder.forward_from(unpack_crossing(data, bottleneck), 5)[0].numpy() for data in payloads]
        full = [encoder.forward_from(crossing, 5)[0].numpy() for crossing in crossings]
    row = table.row(Cut.parse("5:bottleneck-int8"))
    assert row.payload_bytes == np.mean([len(data) for data in payloads]) + MEDIA_HEADER_BYTES
    assert row.payload_bytes < 0.6 * table.row(Cut.parse("5:int8")).payload_bytes
    assert row.agreement == pytest.approx(np.mean([a @ b for a, b in zip(z, full, strict=True)]), abs=1e-6)
    assert row.agreement < table.row(Cut.parse("5:int8")).agreement


def test_a_device_without_weights_fetches_those_of_the_blocks_it_runs(encoder, table):
    costs = encoder.block_costs()
    for row in table.rows:
        values = sum(cost.parameters for cost in costs[: row.cut.block])
        if row.cut.encoding is Encoding.BOTTLENECK_INT8:
            values += sum(p.numel() for p in encoder.bottlenecks[row.cut.block].down.parameters())
        if row.cut.encoding is Encoding.EXIT_FP16:
            values += 32 * 32 + 32
        assert 2 * values <= row.fetch_bytes <= 2 * values + 2_500 * (row.cut.block + 1)  # names and shapes
    assert table.row(Cut.parse("0:opus24")).fetch_bytes == 0
    everything = sum(array.size for block in range(1, 14) for array in encoder.block_weights(block).values())
    assert everything == sum(cost.parameters for cost in costs)


def test_an_exit_costs_what_its_sure_windows_save(encoder, heard, table):
    heard = heard[:32]
    with torch.no_grad():
        inputs = [torch.from_numpy(window.features)[None] for window in heard[1:]]
        early = [encoder.exit_embedding(encoder.forward_to(x, 7), 7)[0].numpy() for x in inputs]
        full = [encoder(x)[0].numpy() for x in inputs]

    def doubt(z: np.ndarray) -> float:  # sure of exactly those near the first axis
        return float(-z[0])

    made = profile_encoder(encoder, device_profile("host"), heard, 8, uncertainty=doubt)
    row, whole = made.row(Cut.parse("7:exit-fp16")), made.row(Cut.parse("13:embedding-fp16"))
    sure = sure_windows(np.stack(early), 7, doubt)
    assert 0.2 < sure.mean() < 0.8 and sorted(np.array(early)[sure, 0])[0] > np.median(np.array(early)[:, 0]) - 0.1
    expected = np.mean([(a if use else b) @ b for a, b, use in zip(early, full, sure, strict=True)])
    assert row.agreement == pytest.approx(expected, abs=1e-3)
    stays = made.row(Cut.parse("7:fp32"))
    assert stays.edge_ms < row.edge_ms < whole.edge_ms * 1.05 and row.payload_bytes == whole.payload_bytes
    always = profile_encoder(encoder, device_profile("host"), heard[:3], 20).row(Cut.parse("7:exit-fp16"))
    agreements = [float(a @ b) for a, b in zip(early, full, strict=True)]
    assert always.agreement == pytest.approx(np.mean(agreements[:2]), abs=1e-3), "too few windows to be sure of any"
    assert np.mean(agreements) < row.agreement


def test_the_encoder_is_left_as_it_was(encoder, windows):
    encoder.train()
    threads = torch.get_num_threads()
    profile_encoder(encoder, device_profile("host"), windows[:2], 1)
    assert encoder.training and torch.get_num_threads() == threads
    assert torch.is_grad_enabled()
    encoder.eval()


def test_windows_that_do_not_follow_each_other_cannot_be_profiled(encoder, windows):
    for some in ([], windows[:1], [windows[0], windows[2]]):
        with pytest.raises(CutError, match="two in a row"):
            profile_encoder(encoder, device_profile("host"), some, 1)
