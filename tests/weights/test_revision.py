"""Revisions name weights by content."""

from __future__ import annotations

import hashlib
import struct
import subprocess
import sys

import numpy as np
import pytest

from streamsplit.errors import RevisionError
from streamsplit.weights.revision import check_revision, revision_of, revision_prefix

WEIGHTS = {"b": np.array([[1.5, -2.0]], np.float32), "a": np.array(3.0, np.float32)}


def test_the_hash_covers_names_shapes_and_values_in_name_order():
    first = struct.pack("<I1sBf", 1, b"a", 0, 3.0)
    second = struct.pack("<I1sBQQff", 1, b"b", 2, 1, 2, 1.5, -2.0)
    spelled = b"streamsplit-weights-1" + first + second
    assert revision_of(WEIGHTS) == hashlib.sha256(spelled).hexdigest()
    assert revision_of(dict(reversed(WEIGHTS.items()))) == revision_of(WEIGHTS)


@pytest.mark.parametrize(
    "other",
    [
        {"b": np.array([[1.5, -2.0000002]], np.float32), "a": WEIGHTS["a"]},
        {"b": WEIGHTS["b"].T, "a": WEIGHTS["a"]},
        {"c": WEIGHTS["b"], "a": WEIGHTS["a"]},
        {"b": WEIGHTS["b"]},
    ],
)
def test_any_change_gives_another_revision(other):
    assert revision_of(other) != revision_of(WEIGHTS)


def test_memory_layout_does_not_count():
    array = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    assert revision_of({"x": np.asfortranarray(array)}) == revision_of({"x": array})


def test_other_types_than_float32_are_refused():
    with pytest.raises(RevisionError, match="float64"):
        revision_of({"x": np.zeros(3)})


def test_the_prefix_is_the_first_four_bytes_big_endian_and_zero_for_none():
    revision = "0102ff04" + "0" * 56
    assert revision_prefix(revision) == 0x0102FF04
    assert revision_prefix("") == 0


@pytest.mark.parametrize("text", ["12", "g" * 64, "A" * 64, "0" * 65])
def test_malformed_revisions_are_refused(text):
    with pytest.raises(RevisionError, match="64 lower-case hex"):
        check_revision(text)


def test_deltas_and_transfers_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; import streamsplit.weights.delta, streamsplit.weights.transfer"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_loading_checks_everything_before_it_changes_anything():
    torch = pytest.importorskip("torch")
    from streamsplit.weights.revision import encoder_weights, load_weights

    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1))
    own = encoder_weights(module)
    good = {name: array + 1 for name, array in own.items()}
    for broken, message in (
        ({**good, "1.bias": np.full(1, np.nan, np.float32)}, "NaN"),
        ({**good, "1.bias": np.zeros(2, np.float32)}, r"expected \(1,\)"),
        ({**good, "2.bias": np.zeros(1, np.float32)}, "'2.bias' is unknown"),
        ({name: good[name] for name in list(good)[1:]}, "missing"),
    ):
        with pytest.raises(RevisionError, match=message):
            load_weights(module, broken)
        assert revision_of(encoder_weights(module)) == revision_of(own)
    load_weights(module, good)
    assert revision_of(encoder_weights(module)) == revision_of(good)


def test_read_weights_do_not_change_with_the_module():
    torch = pytest.importorskip("torch")
    from streamsplit.weights.revision import encoder_weights

    module = torch.nn.Linear(3, 2)
    taken = encoder_weights(module)
    before = revision_of(taken)
    with torch.no_grad():
        module.weight.add_(1)
    assert revision_of(taken) == before
