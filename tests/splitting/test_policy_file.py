"""Policy files: they read back as they were, and every kind of damage is one clear error."""

from __future__ import annotations

import io
import json
import random
import zipfile
from typing import Any

import numpy as np
import pytest
from policy_cases import BLOCKS, META, small_table, untrained_file

from streamsplit.errors import CutError
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.features import STATE_FEATURES
from streamsplit.splitting.policy_file import (
    MAX_POLICY_BYTES,
    PolicyFile,
    architecture_of,
    digest,
    load_policy,
    packaged_policy,
    policy_from_bytes,
)

TABLE = small_table()
FILE = untrained_file(TABLE.cuts, scale=1.0, about={"seeds": [1, 2], "reward": -1.5}, version=7)
DATA = FILE.to_bytes()


def arrays() -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(DATA)) as held:
        return {name: held[name] for name in held.files}


def written(**changes: Any) -> bytes:
    """The file with some arrays replaced; None leaves one out."""
    held = io.BytesIO()
    np.savez(held, **{name: array for name, array in (arrays() | changes).items() if array is not None})
    return held.getvalue()


def described(**changes: Any) -> bytes:
    """The file with some of its description replaced."""
    values = json.loads(str(arrays()["described"])) | changes
    return written(described=np.array(json.dumps({key: value for key, value in values.items() if value != "gone"})))


def test_a_file_reads_back_as_it_was(tmp_path):
    FILE.save(tmp_path / "policy.npz")
    back = load_policy(tmp_path / "policy.npz")
    plain = {"layers": (), "low": 0, "high": 0}
    assert back._replace(**plain) == FILE._replace(**plain)
    for mine, theirs in zip(FILE.layers, back.layers, strict=True):
        np.testing.assert_array_equal(mine.weight, theirs.weight)
        np.testing.assert_array_equal(mine.bias, theirs.bias)
    np.testing.assert_array_equal(back.low, FILE.low)
    np.testing.assert_array_equal(back.high, FILE.high)
    assert back.to_bytes() == DATA == FILE.to_bytes()  # the same policy is the same bytes
    assert len(digest(DATA)) == 64 and digest(DATA) != digest(DATA + b"x")


def test_weights_are_kept_to_half_precision():
    layer = FILE.layers[0]._replace(weight=np.full_like(FILE.layers[0].weight, 1.0 / 3.0))
    back = policy_from_bytes(FILE._replace(layers=(layer, *FILE.layers[1:])).to_bytes())
    assert back.layers[0].weight[0, 0] == np.float32(np.float16(1.0 / 3.0))
    assert back.layers[0].weight.dtype == np.float32


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "not a policy file"),
        (b"PK\x03\x04 and then nothing of the kind", "not a policy file"),
        (DATA[: len(DATA) // 2], "not a policy file"),
        (DATA + bytes(MAX_POLICY_BYTES), "expected at most"),
        (described(format=2), "got policy format 2, expected 1"),
        (described(format="gone"), "not a policy file .*'format'"),
        (described(layers=4), "weight3"),
        (described(layers=0), "got 0 layers"),
        (described(layers=1e999), "not a policy file"),
        (described(cuts=["0:pcm16", "banana"]), "got cut 'banana'"),
        (described(cuts=[*map(str, TABLE.cuts[:8]), "99:int8"]), "got block 99, expected 0..4"),
        (described(cuts=[5] * 9), "not a policy file"),
        (described(cuts=[str(TABLE.cuts[0])] * 9), "no action twice"),
        (described(cuts=list(map(str, TABLE.cuts[:8]))), "after 34 values"),
        (described(settings={"latenzy": 1.0}), "did you mean 'latency'"),
        (described(settings=[]), "not a policy file"),
        (described(cost_weight=float("nan")), "no action twice"),
        (described(num_blocks="many"), "not a policy file"),
        (written(described=np.array("[")), "not a policy file"),
        (written(described=np.array("[" * 100_000)), "not a policy file"),
        (written(low=None), "not a policy file"),
        (written(low=np.zeros(3)), "got ranges of 3 and 26 features"),
        (written(low=np.full(len(STATE_FEATURES), 200.0)), "ends before it begins"),
        (written(high=np.full(len(STATE_FEATURES), np.inf)), "finite numbers"),
        (written(weight0=np.full((33, 8), np.nan)), "finite numbers"),
        (written(weight1=np.zeros((8, 8, 1))), "expected 2 dimensions"),
        (written(weight1=np.zeros((7, 8))), "after 8 values"),
        (written(bias1=np.zeros(9)), "after 8 values"),
        (written(weight2=np.zeros((8, 5)), bias2=np.zeros(5)), "got 5 outputs, expected one for each of 9"),
        (written(weight0=np.array([{}, 1], dtype=object)), "allow_pickle"),
        (written(weight0=np.array([["a"]])), "not a policy file"),
    ],
)  # fmt: skip
def test_every_kind_of_damage_is_named(data, text):
    with pytest.raises(CutError, match=text) as raised:
        policy_from_bytes(data, "from the server")
    assert str(raised.value).startswith("from the server: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize("data", [DATA, written()], ids=["deflated", "stored"])
def test_bytes_changed_anywhere_are_an_error_of_ours_or_still_a_policy(data):
    """Whatever zipfile, zlib, numpy and json think of them; a checksum finds most."""
    rng, refused = random.Random(0), 0
    for _ in range(800):
        damaged = bytearray(data)
        for _ in range(rng.choice([1, 1, 4])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            policy_from_bytes(bytes(damaged))
        except CutError:
            refused += 1
    assert refused > 500


@pytest.mark.parametrize("shape", [(10**15,), (10**30,), (-5, 5), (1 << 20, 1 << 20)])
def test_an_array_that_claims_to_be_huge_is_refused_and_not_allocated(shape):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, array in arrays().items():
            member = io.BytesIO()
            if name == "weight0":
                header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(member, header)
            else:
                np.save(member, array)
            archive.writestr(f"{name}.npy", member.getvalue())
    with pytest.raises(CutError, match="not a policy file"):
        policy_from_bytes(held.getvalue())


def test_a_small_archive_with_a_large_inside_is_refused_before_it_is_unpacked():
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("described.npy", bytes(100 << 20))
    assert len(held.getvalue()) < MAX_POLICY_BYTES
    with pytest.raises(CutError, match=f"got {100 << 20} bytes inside, expected at most"):
        policy_from_bytes(held.getvalue())


def test_a_file_that_is_not_there_or_cannot_be_written_is_a_clear_error(tmp_path):
    with pytest.raises(CutError, match=r"nothing\.npz: policy cannot be read \(No such file"):
        load_policy(tmp_path / "nothing.npz")
    with pytest.raises(CutError, match="policy cannot be written"):
        FILE.save(tmp_path / "no such folder" / "policy.npz")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"encoder": "other"}, "got encoder tiny, expected other"),
        ({"num_blocks": BLOCKS + 1}, "got number of blocks 4, expected 5"),
        ({"architecture": {"name": "tiny", "width": 1.0, "embedding_dim": 16}}, "got architecture .*'width': 0.5"),
        ({"cuts": (Cut.parse("1:int8"), Cut.parse("1:fp16"), TABLE.cuts[0])}, r"1 of its 3 cuts \(1:int8, 1:fp16"),
    ],
)
def test_a_policy_for_another_table_is_refused_by_what_differs(changes, text):
    FILE.check_table(TABLE)
    with pytest.raises(CutError, match=text):
        FILE._replace(**changes).check_table(TABLE)


def test_the_architecture_is_what_decides_the_shape_of_the_encoder():
    assert architecture_of(TABLE) == {"name": "tiny", "width": 0.5, "embedding_dim": 16}  # and not its seed
    assert architecture_of(TABLE._replace(meta={})) == architecture_of(TABLE._replace(meta={"encoder": 3})) == {}
    assert "seed" in META["encoder"]


def test_an_encoder_without_a_packaged_policy_is_named_with_what_to_do():
    with pytest.raises(CutError, match=r"no trained policy ships for encoder 'tiny'.*use policy 'greedy'"):
        packaged_policy("tiny")


def test_a_policy_file_is_a_plain_tuple_that_can_be_changed():
    assert isinstance(FILE._replace(version=8), PolicyFile)
