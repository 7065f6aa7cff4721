"""Full packs and int8 deltas: the same bits on both ends, errors that the next delta makes up for, hostile payloads."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from streamsplit.errors import RevisionError
from streamsplit.weights.container import seal, unseal
from streamsplit.weights.delta import apply_delta, make_delta, pack_full, unpack_full
from streamsplit.weights.revision import Weights, revision_of

SHAPES = {"conv.weight": (8, 4, 3, 3), "conv.bias": (8,), "scale": (), "project.weight": (16, 40), "same": (5, 5)}


def weights(seed: int) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.standard_normal(shape), np.float32) for name, shape in SHAPES.items()}


def trained(base: Weights, seed: int, size: float = 1e-2) -> Weights:
    rng = np.random.default_rng(seed)
    new = {n: (a + np.float32(size) * rng.standard_normal(a.shape)).astype(np.float32) for n, a in base.items()}
    return {**new, "same": base["same"].copy()}


def equal(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype == np.float32 and a[name].tobytes() == b[name].tobytes() for name in a
    )


def worst(a: Weights, b: Weights) -> float:
    return max(float(np.abs(a[name].astype(np.float64) - b[name]).max()) for name in a)


def test_the_receiver_gets_the_senders_result_bit_for_bit():
    base = weights(0)
    payload, result = make_delta(base, trained(base, 1))
    got = apply_delta(base, payload)
    assert equal(got, result)
    assert revision_of(got) == revision_of(result) == unseal(payload)[1]["revision"]


def test_result_follows_the_written_arithmetic():
    """base + steps x size with one float32 rounding after each operation, spelled out number by number."""
    base = weights(0)
    payload, result = make_delta(base, trained(base, 1))
    arrays, _ = unseal(payload)
    steps, sizes = arrays["steps/project.weight"], arrays["sizes/project.weight"]
    assert steps.dtype == np.int8 and sizes.shape == (16,)
    for row, column in [(0, 0), (7, 39), (15, 3)]:
        product = np.float32(float(steps[row, column]) * float(sizes[row]))  # exact in double, rounded once
        expected = np.float32(float(base["project.weight"][row, column]) + float(product))
        assert result["project.weight"][row, column] == expected


def test_the_error_is_at_most_half_a_step_of_the_row():
    base = weights(0)
    new = trained(base, 1)
    result = make_delta(base, new).result
    change = np.abs(new["project.weight"] - base["project.weight"]).max(1, keepdims=True)
    assert (np.abs(result["project.weight"] - new["project.weight"]) <= change / 254 * 1.001 + 3e-7).all()


def test_the_next_delta_makes_up_for_the_error_of_the_last():
    base, target = weights(0), trained(weights(0), 1, size=1.0)
    first = make_delta(base, target).result
    second = make_delta(first, target).result
    third = make_delta(second, target).result
    assert worst(second, target) < worst(first, target) / 50
    assert worst(third, target) < 1e-6


def test_errors_do_not_add_up_over_many_revisions():
    device = server = weights(0)
    for seed in range(1, 21):
        server = trained(server, seed)
        payload, sent = make_delta(device, server)
        device = apply_delta(device, payload)
        assert equal(device, sent)
    largest_step = max(float(np.abs(server[n] - a).max()) for n, a in device.items())
    assert largest_step < 4e-2 / 127


def test_a_delta_is_about_a_quarter_and_leaves_out_what_did_not_change():
    base = {"w": np.random.default_rng(0).standard_normal((128, 2000)).astype(np.float32), "same": weights(0)["same"]}
    payload, _ = make_delta(base, {"w": base["w"] * np.float32(1.01), "same": base["same"]})
    assert len(payload) < 0.26 * base["w"].nbytes
    assert sorted(unseal(payload)[0]) == ["sizes/w", "steps/w"]


def test_no_change_is_a_valid_empty_delta():
    base = weights(0)
    payload, result = make_delta(base, base)
    assert equal(result, base) and equal(apply_delta(base, payload), base)
    assert len(payload) < 500


def test_the_same_delta_has_the_same_bytes():
    base, new = weights(0), trained(weights(0), 1)
    assert make_delta(base, new).payload == make_delta(base, new).payload


def test_inputs_are_not_changed_and_results_are_copies():
    base, new = weights(0), trained(weights(0), 1)
    before = revision_of(base), revision_of(new)
    result = make_delta(base, new).result
    for array in result.values():
        array += 1
    assert (revision_of(base), revision_of(new)) == before


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_full_packs_come_back_as_the_sender_says(precision):
    own = weights(0)
    payload, result = pack_full(own, precision)
    assert equal(unpack_full(payload), result)
    if precision == "fp32":
        assert equal(result, own)
    else:
        assert all((np.abs(result[n] - a) <= np.maximum(np.abs(a) * 2**-11, 2**-25)).all() for n, a in own.items())
        assert len(payload) < 0.6 * len(pack_full(own, "fp32").payload)


def test_values_that_do_not_fit_are_refused():
    own = weights(0)
    with pytest.raises(RevisionError, match="'scale'"):
        pack_full({**own, "scale": np.float32(7e4).reshape(())}, "fp16")
    with pytest.raises(RevisionError, match="NaN"):
        pack_full({**own, "scale": np.float32("nan").reshape(())}, "fp32")
    with pytest.raises(RevisionError, match="NaN"):
        make_delta(own, {**own, "scale": np.float32("inf").reshape(())})
    with pytest.raises(RevisionError, match="precision 'int4'"):
        pack_full(own, "int4")


def test_a_delta_on_another_base_is_refused():
    base = weights(0)
    payload, _ = make_delta(base, trained(base, 1))
    with pytest.raises(RevisionError, match="ask for full weights"):
        apply_delta(weights(2), payload)


def test_weights_of_another_encoder_make_no_delta():
    base = weights(0)
    with pytest.raises(RevisionError, match="'scale' is missing"):
        make_delta(base, {name: array for name, array in base.items() if name != "scale"})
    with pytest.raises(RevisionError, match="for 'same', expected"):
        make_delta(base, {**base, "same": np.zeros((5, 4), np.float32)})


def test_full_and_delta_payloads_are_not_mixed_up():
    base = weights(0)
    with pytest.raises(RevisionError, match="expected 'delta-1'"):
        apply_delta(base, pack_full(base).payload)
    with pytest.raises(RevisionError, match="expected 'full-1'"):
        unpack_full(make_delta(base, trained(base, 1)).payload)


def test_every_flipped_byte_is_noticed():
    base = {"w": np.ones((2, 3), np.float32)}
    payload = make_delta(base, {"w": np.array([[1, 2, 3], [4, 5, 6]], np.float32)}).payload
    (header,) = struct.unpack_from("<Q", payload)
    for position in range(8 + header, len(payload)):
        broken = bytearray(payload)
        broken[position] ^= 1
        with pytest.raises(RevisionError):
            apply_delta(base, broken)


def test_every_truncation_is_noticed():
    base = {"w": np.ones((2, 3), np.float32)}
    for payload, read in (
        (make_delta(base, {"w": base["w"] * 2}).payload, lambda data: apply_delta(base, data)),
        (pack_full(base).payload, unpack_full),
    ):
        for wrong in [payload[:n] for n in range(len(payload))] + [payload + b"\0"]:
            with pytest.raises(RevisionError):
                read(wrong)


def record(base: Weights) -> dict[str, str]:
    return {"format": "delta-1", "base": revision_of(base), "revision": "0" * 64}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"steps/same": np.zeros((5, 5), np.int8)}, "pair up"),
        ({"other": np.zeros(3, np.int8)}, "pair up"),
        ({"steps/nope": np.zeros(3, np.int8), "sizes/nope": np.zeros(1, np.float32)}, "does not have"),
        ({"steps/same": np.zeros((5, 4), np.int8), "sizes/same": np.zeros(5, np.float32)}, "expected int8"),
        ({"steps/same": np.zeros((5, 5), np.float32), "sizes/same": np.zeros(5, np.float32)}, "expected int8"),
        ({"steps/same": np.zeros((5, 5), np.int8), "sizes/same": np.zeros(1, np.float32)}, "step sizes"),
        ({"steps/same": np.ones((5, 5), np.int8), "sizes/same": np.full(5, np.nan, np.float32)}, "NaN"),
        ({"steps/same": np.full((5, 5), 127, np.int8), "sizes/same": np.full(5, 3e38, np.float32)}, "NaN"),
        ({"steps/same": np.ones((5, 5), np.int8), "sizes/same": np.ones(5, np.float32)}, "damaged"),
    ],
)
def test_deltas_that_do_not_fit_their_base_are_refused(arrays, message):
    base = weights(0)
    with pytest.raises(RevisionError, match=message):
        apply_delta(base, seal(arrays, record(base)))


def container(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


META = {"streamsplit": json.dumps({"format": "full-1", "revision": "0" * 64})}


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x80\x04N.",  # a pickle of None
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 0) + b"{}",
        container(b"\xff\xfe"),
        container(b"[" * 100_000),
        container([]),
        container({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        container({"__metadata__": {"streamsplit": "[]"}}),
        container({"__metadata__": {"streamsplit": '{"format": 1}'}}),
        container({"__metadata__": META, "w": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, bytes(8)),
        container({"__metadata__": META, "w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, bytes(4)),
        container({"__metadata__": META, "w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1]}}, b"1"),
        container({"__metadata__": META, "w": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}, bytes(4)),
        container({"__metadata__": META, "w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, bytes(4)),
        container({"__metadata__": META, "w": 3}),
        save({"w": np.zeros(3, np.float32)}),
    ],
)
def test_hostile_containers_are_refused(payload):
    with pytest.raises(RevisionError):
        unpack_full(payload)


def test_int8_is_no_full_pack():
    payload = seal({"w": np.zeros(3, np.int8)}, {"format": "full-1", "revision": "0" * 64})
    with pytest.raises(RevisionError, match="expected float16 or float32"):
        unpack_full(payload)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_revision_errors(data):
    with pytest.raises(RevisionError):
        unpack_full(data)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 255))
def test_random_damage_raises_nothing_but_revision_errors(position, value):
    base = {"w": np.ones((2, 3), np.float32)}
    payload = bytearray(make_delta(base, {"w": base["w"] * 2}).payload)
    result = apply_delta(base, payload)
    payload[position % len(payload)] = value
    try:
        got = apply_delta(base, payload)
    except RevisionError:
        return
    assert equal(got, result)  # the byte was what it had been, or padding
