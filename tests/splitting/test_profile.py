"""Profiling: every cut has a row, bytes are those of the packers, agreement is what the cut does to the embedding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import WindowStream
from streamsplit.codec.features import pack_features, unpack_features
from streamsplit.encoders.bottleneck import fit_bottleneck
from streamsplit.encoders.crossing import pack_crossing, unpack_crossing
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.errors import CutError
from streamsplit.splitting.cut import Cut, all_cuts
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.profile import profile_encoder
from streamsplit.wire.media import MEDIA_HEADER_BYTES, Encoding


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(EncoderSettings(width=0.25, embedding_dim=32))


@pytest.fixture(scope="module")
def windows():
    return WindowStream().push(Soundscape(3).read(16_000 * 4))


@pytest.fixture(scope="module")
def table(encoder, windows):
    seen = []
    made = profile_encoder(encoder, device_profile("pi4"), windows, 9, progress=lambda *at: seen.append(at))
    cuts = len(all_cuts(encoder.num_blocks))
    assert seen == [(done, cuts) for done in range(1, cuts + 1)]
    return made


def test_every_cut_has_a_row_with_times_and_energy(encoder, table):
    assert table.cuts == tuple(sorted(all_cuts(encoder.num_blocks)))
    assert table.encoder == "mobilenet" and table.device == "pi4" and table.factor == 11.7
    pi = device_profile("pi4")
    for row in table.rows:
        assert row.edge_ms > 0
        assert row.energy_mj == pytest.approx(pi.energy_mj(row.edge_ms, row.payload_bytes))
        assert (row.server_ms > 0) == row.cut.sends
    assert table.meta["windows"] == 5 and table.meta["stride_frames"] == 50


def test_deeper_cuts_cost_the_device_more_and_the_server_less(encoder, table):
    last = encoder.num_blocks
    shallow, deep = table.row(Cut(1, Encoding.FP32)), table.row(Cut(last - 1, Encoding.FP32))
    assert deep.edge_ms > 1.5 * shallow.edge_ms and deep.server_ms < shallow.server_ms
    assert table.row(Cut(0, Encoding.PCM16)).edge_ms < shallow.edge_ms


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


def test_a_bottleneck_is_measured_beside_the_rows(encoder, windows, table):
    narrow = copy.deepcopy(encoder)
    bottleneck = fit_bottleneck(narrow, 5, np.stack([window.features for window in windows]), steps=5)
    made = profile_encoder(narrow, device_profile("pi4"), windows, 3)
    assert made.cuts == table.cuts and "bottlenecks" not in table.meta
    (values,) = made.meta["bottlenecks"]
    with torch.no_grad():
        crossings = [narrow.forward_to(torch.from_numpy(window.features)[None], 5) for window in windows[1:]]
        payloads = [pack_crossing(crossing, Encoding.INT8, bottleneck) for crossing in crossings]
        z = [narrow.forward_from(unpack_crossing(data, bottleneck), 5)[0].numpy() for data in payloads]
        full = [narrow.forward_from(crossing, 5)[0].numpy() for crossing in crossings]
    assert values["cut"] == "5:int8" and values["channels"] == [bottleneck.channels, bottleneck.narrow]
    assert values["payload_bytes"] == np.mean([len(data) for data in payloads]) + MEDIA_HEADER_BYTES
    assert values["payload_bytes"] < 0.6 * made.row(Cut.parse("5:int8")).payload_bytes
    expected = np.mean([a @ b for a, b in zip(z, full, strict=True)])
    assert values["agreement"] == pytest.approx(expected, abs=1e-6)
    assert values["edge_ms"] > 0 and values["server_ms"] > 0 and values["energy_mj"] > 0


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
