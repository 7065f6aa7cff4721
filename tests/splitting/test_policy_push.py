"""Pushed policies: what is signed, what is refused and in which order, what is kept."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from policy_cases import small_table, untrained_file

from streamsplit.errors import CutError
from streamsplit.splitting.policy_push import (
    MAX_PUSHED_BYTES,
    PushedPolicy,
    open_policy,
    pushed_from_bytes,
    sign_policy,
)

TABLE = small_table()
FILE = untrained_file(TABLE.cuts, scale=0.1)
DATA = FILE.to_bytes()
KEY = "a key that stays at home"


def opened(pushed: PushedPolicy, *, key: str = KEY, held: int = 0, table=TABLE):
    return open_policy(pushed, key=key, held_version=held, table=table)


def test_the_signature_is_hmac_sha256_over_context_version_and_data():
    expected = hmac.new(KEY.encode(), b"streamsplit policy 1\0" + (7).to_bytes(4, "little") + DATA, hashlib.sha256)
    assert sign_policy(KEY, 7, DATA) == (7, DATA, expected.digest())


def test_a_good_push_is_opened_and_carries_its_version():
    file = opened(sign_policy(KEY, 7, DATA), held=6)
    assert file.version == 7 and file.cuts == FILE.cuts
    assert all((a.weight == b.weight).all() for a, b in zip(file.layers, FILE.layers, strict=True))


def test_every_flipped_bit_and_another_version_or_key_breaks_the_signature():
    good = sign_policy(KEY, 7, DATA)
    for at in (0, len(DATA) // 2, len(DATA) - 1):
        changed = DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :]
        with pytest.raises(CutError, match="signature is wrong"):
            opened(good._replace(data=changed))
    with pytest.raises(CutError, match="signature is wrong"):
        opened(good._replace(version=8))
    with pytest.raises(CutError, match="signature is wrong"):
        opened(good, key="another")
    for signature in (b"", b"\0" * 32, good.signature[:31]):
        with pytest.raises(CutError, match="signature is wrong"):
            opened(good._replace(signature=signature))


def test_without_a_key_nothing_is_opened_whatever_it_is_signed_with():
    with pytest.raises(CutError, match="no key is set"):
        opened(sign_policy("x", 7, DATA), key="")
    with pytest.raises(CutError, match="got no key"):
        sign_policy("", 7, DATA)


@pytest.mark.parametrize("held", [7, 8, 0xFFFFFFFF])
def test_versions_that_are_not_newer_are_refused(held):
    with pytest.raises(CutError, match="newer than"):
        opened(sign_policy(KEY, 7, DATA), held=held)


def test_another_table_and_a_damaged_file_are_refused_although_they_are_signed():
    with pytest.raises(CutError, match="another cut table"):
        opened(sign_policy(KEY, 7, FILE._replace(encoder="other").to_bytes()))
    with pytest.raises(CutError, match="pushed policy v7: not a policy file"):
        opened(sign_policy(KEY, 7, DATA[:-50]))
    with pytest.raises(CutError, match="pushed policy v7: not a policy file"):
        opened(sign_policy(KEY, 7, b""))


def test_what_is_too_large_is_neither_signed_nor_opened():
    large = bytes(MAX_PUSHED_BYTES + 1)
    with pytest.raises(CutError, match="expected at most"):
        sign_policy(KEY, 7, large)
    with pytest.raises(CutError, match="expected at most"):
        opened(PushedPolicy(7, large, b"\0" * 32))
    for version in (0, -1, 1 << 32):
        with pytest.raises(CutError, match="version"):
            sign_policy(KEY, version, DATA)


def test_kept_and_read_again_it_is_the_same_and_a_short_file_is_named():
    good = sign_policy(KEY, 7, DATA)
    assert pushed_from_bytes(good.to_bytes(), "policy.pushed") == good
    for length in (0, 10, 36):
        with pytest.raises(CutError, match=r"policy\.pushed: got"):
            pushed_from_bytes(good.to_bytes()[:length], "policy.pushed")
