"""The cut table: checking, files, scaling to devices."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest

from streamsplit.encoders.factory import EncoderSettings
from streamsplit.errors import ConfigError, CutError
from streamsplit.splitting.cut import Cut, all_cuts
from streamsplit.splitting.device import DEVICES, RADIOS, device_profile
from streamsplit.splitting.table import CutRow, CutTable, load_table, make_table, packaged_table
from streamsplit.wire.media import Encoding


def row(text: str, edge_ms: float = 2.0, payload: float = 1000.0, **changes: float) -> CutRow:
    values = {"server_ms": 1.0, "energy_mj": 5.0, "agreement": 0.99, **changes}
    return CutRow(Cut.parse(text), edge_ms, payload_bytes=payload, **values)


def table(*rows: CutRow) -> CutTable:
    return make_table(CutTable("mobilenet", "host", 1.0, 13, rows, {"command": "test"}))


def test_a_saved_table_reads_back_equal_and_nan_stays_nan(tmp_path):
    measured = {"accuracy": 0.5, "fetch_bytes": 9e5}
    made = table(row("6:int8", **measured), row("0:pcm16"), row("13:none", payload=0.0, privacy_risk=0.25))
    made.save(tmp_path / "t.json")
    back = load_table(tmp_path / "t.json")
    assert back.cuts == (Cut.parse("0:pcm16"), Cut.parse("6:int8"), Cut.parse("13:none"))
    assert back._replace(rows=()) == made._replace(rows=())
    plain = {"privacy_risk": 0.0, "accuracy": 0.0}
    assert [r._replace(**plain) for r in back.rows] == [r._replace(**plain) for r in made.rows]
    assert [math.isnan(r.privacy_risk) for r in back.rows] == [True, True, False]
    assert back.row(Cut.parse("6:int8")).accuracy == 0.5 and math.isnan(back.rows[0].accuracy)
    assert "NaN" not in (tmp_path / "t.json").read_text()


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ((), "empty"),
        ((row("6:int8"), row("6:int8")), "two rows"),
        ((row("14:int8"),), "block 14"),
        ((row("13:int8"),), "int8 at block 13"),
        ((row("13:exit-fp16"),), "exit-fp16 at block 13"),
        ((row("0:exit-fp16"),), "exit-fp16 at block 0"),
        ((row("0:bottleneck-int8"),), "bottleneck-int8 at block 0"),
        ((row("6:int8", edge_ms=math.nan),), "edge_ms nan"),
        ((row("6:int8", payload=-1.0),), "payload_bytes -1"),
        ((row("6:int8", agreement=1.5),), "agreement 1.5"),
        ((row("6:int8", accuracy=42.0),), "accuracy 42"),
        ((row("6:int8", privacy_risk=-0.1),), "privacy_risk -0.1"),
        ((row("6:int8", fetch_bytes=math.nan),), "fetch_bytes nan"),
    ],
)
def test_an_impossible_table_is_refused_by_what_is_wrong_with_it(rows, text):
    with pytest.raises(CutError, match=text):
        table(*rows)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 3, "rows": []}',
        '{"format": 1, "rows": 3}',
        '{"format": 1, "rows": [{"cut": 5}]}',
    ],
)
def test_a_damaged_file_is_a_cut_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises(CutError, match=r"bad\.json"):
        load_table(path)


def test_a_table_of_format_1_reads_without_what_it_lacks(tmp_path):
    values = table(row("6:int8", accuracy=0.5, fetch_bytes=7.0)).as_dict()
    for name in ("accuracy", "fetch_bytes"):
        del values["rows"][0][name]
    (tmp_path / "old.json").write_text(json.dumps(values | {"format": 1}))
    old = load_table(tmp_path / "old.json").rows[0]
    assert math.isnan(old.accuracy) and old.fetch_bytes == 0.0
    assert old[:6] == row("6:int8")[:6]


def test_a_fingerprint_is_of_the_encoder_and_the_cuts_not_of_what_was_measured():
    made = table(row("0:pcm16"), row("6:int8"))
    settings = {"name": "mobilenet", "width": 0.75, "embedding_dim": 128, "seed": 0}
    known = made._replace(meta={"encoder": settings})
    print_ = known.fingerprint
    assert len(print_) == 16 and int(print_, 16) >= 0
    again = table(row("0:pcm16", edge_ms=9.0), row("6:int8"))._replace(meta={"encoder": settings | {"seed": 5}})
    assert again.for_device(device_profile("pi4")).fingerprint == print_
    others = [
        known.only([Cut.parse("0:pcm16")]),
        known._replace(meta={"encoder": settings | {"width": 0.5}}),
        known._replace(encoder="resnet18"),
        known._replace(num_blocks=14),
    ]
    assert len({print_, *(other.fingerprint for other in others)}) == 5


def test_a_missing_file_is_a_cut_error(tmp_path):
    with pytest.raises(CutError, match="cannot be read"):
        load_table(tmp_path / "none.json")
    with pytest.raises(CutError, match="cannot be written"):
        table(row("6:int8")).save(tmp_path / "no" / "folder.json")


def test_scaling_to_a_device_multiplies_its_time_and_recomputes_its_energy():
    pi = device_profile("pi4")
    scaled = table(row("6:int8", edge_ms=2.0, payload=2000.0)).for_device(pi)
    only = scaled.rows[0]
    assert scaled.device == "pi4" and scaled.factor == 11.7
    assert only.edge_ms == pytest.approx(23.4)
    # one of four cores busy for 23.4 ms at 4.53 W full load, and 2 kB at 0.5 J/MB
    assert only.energy_mj == pytest.approx(4.53 / 4 * 23.4 + 0.5 * 2.0)
    assert only.server_ms == 1.0 and only.payload_bytes == 2000.0
    assert scaled.for_device(device_profile("host")).rows[0].edge_ms == pytest.approx(2.0)


def test_a_part_of_a_table_keeps_the_asked_rows_and_refuses_unknown_ones():
    made = table(row("0:pcm16"), row("6:int8"), row("13:none"))
    assert made.only([Cut.parse("6:int8")]).cuts == (Cut.parse("6:int8"),)
    with pytest.raises(CutError, match="0:opus24"):
        made.only([Cut.parse("0:opus24")])
    with pytest.raises(CutError, match="empty"):
        made.only([])


def test_a_device_keeps_the_rows_that_its_encoder_has_bottlenecks_for():
    made = table(row("0:pcm16"), row("5:bottleneck-int8"), row("6:exit-fp16"), row("8:bottleneck-int8"))
    assert made.supported((5, 8)) is made
    assert [str(cut) for cut in made.supported([8]).cuts] == ["0:pcm16", "6:exit-fp16", "8:bottleneck-int8"]
    assert [str(cut) for cut in made.supported(None).cuts] == ["0:pcm16"]  # no encoder at all


def test_a_table_of_another_encoder_is_refused_by_the_first_difference():
    settings = EncoderSettings()
    made = table(row("0:pcm16"), row("5:bottleneck-int8"))._replace(meta={"encoder": settings.as_dict()})
    assert made.check_encoder(settings) is made
    assert made.check_encoder(settings.replace(seed=3)) is made
    assert made._replace(meta={}).check_encoder(EncoderSettings(width=0.5)).meta == {}  # an old table does not say
    for other, text in (
        (EncoderSettings(name="resnet18"), "encoder mobilenet, expected resnet18"),
        (EncoderSettings(width=0.5), "width 0.75, expected 0.5"),
        (EncoderSettings(embedding_dim=64), "embedding_dim 128, expected 64"),
        (EncoderSettings(bottlenecks=(2,)), r"bottlenecks after \[5\], expected only some of \[2\]"),
    ):
        with pytest.raises(CutError, match=text):
            made.check_encoder(other)
    with pytest.raises(CutError, match="blocks 12, expected 13"):
        made._replace(num_blocks=12).check_encoder(settings)


def test_rows_measured_later_join_a_table_and_are_told_apart():
    about = {
        "command": "profile",
        "encoder": {"name": "mobilenet", "width": 0.75},
        "quality": {"epsilon": {"0:pcm16": 0.1}},
    }
    old = table(row("0:pcm16"), row("6:int8", edge_ms=2.0))._replace(meta=about)
    said = {**about, "command": "profile --only", "quality": {"epsilon": {"0:tinystream": 0.5}}}
    new = table(row("0:tinystream"), row("6:int8", edge_ms=9.0))._replace(meta=said)
    both = old.joined(new)
    assert list(map(str, both.cuts)) == ["0:pcm16", "0:tinystream", "6:int8"]
    assert both.row(Cut.parse("6:int8")).edge_ms == 9.0
    assert both.meta["joined"] == [{"cuts": ["0:tinystream", "6:int8"], "command": "profile --only"}]
    assert both.meta["quality"]["epsilon"] == {"0:pcm16": 0.1, "0:tinystream": 0.5}
    assert both.meta["command"] == "profile" and "joined" not in old.meta
    again = both.joined(new)
    assert again.meta["joined"] == both.meta["joined"]  # the earlier entry is replaced
    for other, text in (
        (new._replace(device="pi4", factor=11.7), r"device \('pi4', 11.7\), expected \('host', 1.0\)"),
        (new._replace(meta={**said, "encoder": {"name": "mobilenet", "width": 0.5}}), "encoder"),
        (new._replace(meta={"encoder": about["encoder"]}), "quality False, expected True"),
    ):
        with pytest.raises(CutError, match=text):
            old.joined(other)


def test_every_device_row_has_a_basis_and_longer_names_find_it():
    assert all(device.basis for device in DEVICES.values())
    assert device_profile("raspberry_pi_4b") == DEVICES["pi4"]
    assert device_profile("pi4", radio="lte").radio == RADIOS["lte"]
    assert device_profile("pi4", factor=9.8).factor == 9.8
    with pytest.raises(ConfigError, match="did you mean 'pi4'"):
        device_profile("pi5")
    with pytest.raises(ConfigError, match="did you mean 'lte"):
        device_profile("pi4", radio="ltee")


def test_the_papers_pi_draws_what_the_model_says():
    pi = DEVICES["pi4-paper"]
    assert pi.power_w(0.0, link_up=False) == pytest.approx(1.74)
    assert pi.power_w(1.0, link_up=True) == pytest.approx(1.74 + 2.55 + 0.1)
    assert pi.total_mj(1000.0, 0.5, 1_000_000, link_up=False) == pytest.approx(1000 * (1.74 + 0.5 * 2.55) + 500.0)


def test_the_packaged_table_covers_every_cut_and_says_where_it_comes_from():
    shipped = packaged_table("mobilenet", "host")
    assert shipped.cuts == tuple(sorted(all_cuts(shipped.num_blocks, EncoderSettings().bottleneck_blocks)))
    assert "streamsplit profile" in shipped.meta["command"] and shipped.meta["machine"]
    by_cut = {r.cut: r for r in shipped.rows}
    assert by_cut[Cut(0, Encoding.PCM16)].payload_bytes == 20 + 50 * 160 * 2
    assert by_cut[Cut(shipped.num_blocks, Encoding.NONE)].payload_bytes == 0
    fp32 = [r.agreement for r in shipped.rows if r.cut.encoding is Encoding.FP32]
    assert min(fp32) > 1 - 1e-5
    pi = packaged_table("mobilenet", "raspberry_pi_4b")
    assert pi.rows[5].edge_ms == pytest.approx(11.7 * shipped.rows[5].edge_ms)
    with pytest.raises(CutError, match="streamsplit profile"):
        packaged_table("nothing")


@pytest.mark.parametrize("name", ["mobilenet", "resnet18"])
def test_packaged_tables_are_whole_plausible_and_of_the_default_encoder(name):
    shipped, settings = packaged_table(name), EncoderSettings(name=name)
    assert shipped.check_encoder(settings).cuts == tuple(
        sorted(all_cuts(shipped.num_blocks, settings.bottleneck_blocks))
    )
    for row in shipped.rows:
        assert 0.5 < row.accuracy < 1 and 0 <= row.privacy_risk <= 1 and (row.fetch_bytes > 0) == (row.cut.block > 0)
        assert row.privacy_risk > 0 or not row.cut.sends
    maps = [row for row in shipped.rows if row.cut.encoding is Encoding.INT8]
    for shallow, deep in pairwise(maps):
        assert shallow.edge_ms < deep.edge_ms and shallow.server_ms > deep.server_ms
        assert shallow.privacy_risk >= deep.privacy_risk and shallow.fetch_bytes < deep.fetch_bytes
    for row in shipped.rows:
        if row.cut.encoding is Encoding.BOTTLENECK_INT8:
            assert row.payload_bytes < 0.5 * shipped.row(Cut(row.cut.block, Encoding.INT8)).payload_bytes
    assert shipped.meta["quality"]["full_accuracy_standard_error"] < 0.05


def test_json_of_a_table_is_plain(tmp_path):
    values = json.loads(json.dumps(table(row("6:int8")).as_dict(), allow_nan=False))
    assert values["rows"][0]["cut"] == "6:int8"
