"""Who signed a folder of chunks, and that it stays so: clients that were given a key take nothing else."""

from __future__ import annotations

from pathlib import Path

from streamsplit.errors import ManifestError
from streamsplit.weights.streaming.manifest import Manifest, public_key


def check_signer(folder: str | Path, manifest: Manifest, signing_key: bytes, replace_signer: bool) -> None:
    """Raises ManifestError where what follows on a signed manifest would not be signed with the same key.

    `signing_key` is an Ed25519 seed, b"" for none; `replace_signer` says that the change is meant.
    """
    if manifest.signature is None or replace_signer:
        return
    signer = manifest.signature.public_key
    if not signing_key:
        raise ManifestError(
            f"{folder}: got a folder signed by key {signer[:16]} and no key, expected --signing-key (or "
            "STREAMSPLIT_SIGNING_KEY) with its seed; --unsigned drops the signature"
        )
    given = public_key(signing_key)
    if given != signer:
        raise ManifestError(
            f"{folder}: got a folder signed by key {signer[:16]} and the seed of key {given[:16]}, expected the same; "
            "--new-key changes keys, and clients that were given the old one will refuse it"
        )
