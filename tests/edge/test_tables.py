"""The table a device starts with: its own where it fits the encoder, the packaged one else."""

from __future__ import annotations

import logging

import pytest

from streamsplit.edge.settings import EdgeSettings
from streamsplit.edge.tables import device_table
from streamsplit.errors import CheckpointError, CutError
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.table import packaged_table
from streamsplit.wire.media import Encoding


def settings(table: str = "", **encoder: object) -> EdgeSettings:
    return EdgeSettings.from_mapping({"splitting": {"table": table}, "encoder": encoder})


def test_a_named_table_of_another_encoder_is_one_clear_error(tmp_path):
    path = tmp_path / "mine.json"
    packaged_table("mobilenet").save(path)
    assert device_table(settings(str(path))).cuts == packaged_table("mobilenet").cuts
    with pytest.raises(CutError, match=r"mine\.json: the cut table was measured with width 0\.75, expected 0\.5"):
        device_table(settings(str(path), width=0.5))
    with pytest.raises(CutError, match="encoder mobilenet, expected resnet18"):
        device_table(settings(str(path), name="resnet18"))
    device_table(settings(str(path), width=0.5, enabled=False))  # it only ever cuts before the first block


def test_the_packaged_table_stands_in_for_another_width_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        table = device_table(settings(width=0.5))
    assert table.cuts and "width 0.75, expected 0.5" in caplog.text


def test_rows_of_bottlenecks_that_the_device_does_not_have_are_left_out(caplog):
    with caplog.at_level(logging.WARNING):
        table = device_table(settings(bottlenecks=[5]))
    assert {cut.block for cut in table.cuts if cut.encoding is Encoding.BOTTLENECK_INT8} == {5}
    assert not caplog.text


def test_a_device_without_a_codec_has_no_cut_for_it():
    without = device_table(EdgeSettings.from_mapping({"codec": {"name": ""}}))
    codes = [cut for cut in device_table(EdgeSettings()).cuts if cut not in without.cuts]
    assert codes == [Cut(0, Encoding.TINYSTREAM)]


def test_a_codec_that_is_not_there_is_one_clear_error():
    for values, error, text in (
        ({"name": "grand"}, CheckpointError, "grand: cannot be read"),
        ({"quantizers": 6}, CutError, "got 6 quantizers, expected 1..5"),
    ):
        with pytest.raises(error, match=text):
            _ = EdgeSettings.from_mapping({"codec": values}).codec.encoder
