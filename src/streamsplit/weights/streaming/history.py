"""Which files the revisions need that were served from a place before: what may be thrown away, and what not yet."""

from __future__ import annotations

import re

import msgspec

from streamsplit.errors import ManifestError
from streamsplit.weights.streaming.manifest import Digest, Manifest, file_name

NAME = "history.json"
MAX_REVISIONS = 1000
CHUNK_FILE = re.compile(r"[0-9a-f]{64}\.chunk\Z")


class Past(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One earlier revision: its chunks, and the deltas that led to them."""

    revision: Digest
    stored: tuple[Digest, ...]


class History(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Earlier revisions, the oldest first."""

    revisions: tuple[Past, ...] = ()

    def remembering(self, manifest: Manifest) -> History:
        """With a manifest that is about to be replaced, as the newest of the past."""
        others = tuple(past for past in self.revisions if past.revision != manifest.revision)
        past = Past(revision=manifest.revision, stored=tuple(manifest.stored))
        return History(revisions=(*others, past)[-MAX_REVISIONS:])

    def only(self, keep: int) -> History:
        """The newest `keep` of them."""
        return History(revisions=self.revisions[-keep:] if keep else ())

    def needed(self, manifest: Manifest) -> set[str]:
        """Names of the files that these revisions and the present one need."""
        digests = set(manifest.stored).union(*(past.stored for past in self.revisions))
        return {file_name(digest) for digest in digests}


def decode_history(data: bytes) -> History:
    """Raises ManifestError."""
    try:
        return msgspec.json.decode(data, type=History)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ManifestError(f"{NAME} does not parse ({error}); delete it to forget earlier revisions") from None


def encode_history(history: History) -> bytes:
    """The bytes of history.json."""
    return msgspec.json.format(msgspec.json.encode(history, order="sorted"), indent=1)
