"""A policy on its way from the server to a device: signed with a key that both hold and nobody sends."""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import NamedTuple

from streamsplit.errors import CutError
from streamsplit.splitting.policy_file import PolicyFile, policy_from_bytes
from streamsplit.splitting.table import CutTable

CONTEXT = b"streamsplit policy 1\0"  # so that a signature of something else with the same key is none of a policy
SIGNATURE_BYTES = 32
MAX_PUSHED_BYTES = 35 << 10  # of the .npz: with names, version and signature it fits into one POLICY_FILE
MAX_VERSION = 0xFFFF_FFFF
_HEAD = struct.Struct("<I32s")


class PushedPolicy(NamedTuple):
    """A version, the policy's .npz and the signature over both."""

    version: int
    data: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """As a device keeps it: version, signature, .npz."""
        return _HEAD.pack(self.version, self.signature) + self.data


def sign_policy(key: str, version: int, data: bytes) -> PushedPolicy:
    """Signs a policy for its way down; raises CutError for one that does not fit, or without a key."""
    if not key:
        raise CutError("a policy is pushed signed: got no key, expected the one that the devices hold (policy.key)")
    if not 1 <= version <= MAX_VERSION:
        raise CutError(f"got policy version {version}, expected 1..{MAX_VERSION}")
    if len(data) > MAX_PUSHED_BYTES:
        raise CutError(f"got a policy of {len(data)} bytes, expected at most {MAX_PUSHED_BYTES} to push it")
    return PushedPolicy(version, data, _signature(key, version, data))


def open_policy(pushed: PushedPolicy, *, key: str, held_version: int, table: CutTable) -> PolicyFile:
    """The policy inside, if this device may use it; raises CutError saying why not.

    Checked in this order, so that nothing that is not from the server is parsed: a key, size, signature, newer than
    what is held, a whole file, the table. The policy that comes back carries the pushed version.
    """
    if not key:
        raise CutError("a policy was pushed, but no key is set here; set splitting.agent.policy_key to take any")
    if len(pushed.data) > MAX_PUSHED_BYTES:
        raise CutError(f"got a pushed policy of {len(pushed.data)} bytes, expected at most {MAX_PUSHED_BYTES}")
    if not 1 <= pushed.version <= MAX_VERSION:
        raise CutError(f"got pushed policy version {pushed.version}, expected 1..{MAX_VERSION}")
    if not hmac.compare_digest(_signature(key, pushed.version, pushed.data), pushed.signature):
        raise CutError(
            f"pushed policy v{pushed.version}: the signature is wrong; set the same key on the server and on the device"
        )
    if pushed.version <= held_version:
        raise CutError(f"got pushed policy v{pushed.version}, expected one newer than v{held_version}, which is held")
    file = policy_from_bytes(pushed.data, f"pushed policy v{pushed.version}")
    file.check_table(table)
    return file._replace(version=pushed.version)


def pushed_from_bytes(data: bytes, source: str) -> PushedPolicy:
    """What `PushedPolicy.to_bytes` gives; raises CutError naming `source`."""
    if len(data) <= _HEAD.size:
        raise CutError(f"{source}: got {len(data)} bytes, expected a kept policy; delete it")
    version, signature = _HEAD.unpack_from(data)
    return PushedPolicy(version, data[_HEAD.size :], signature)


def _signature(key: str, version: int, data: bytes) -> bytes:
    return hmac.new(key.encode(), CONTEXT + struct.pack("<I", version) + data, hashlib.sha256).digest()
