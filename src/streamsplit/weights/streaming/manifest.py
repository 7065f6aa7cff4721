"""The manifest of a streamed model: its configuration, the order of its chunks, and the SHA-256 of every one.

Whoever trusts the manifest (by TLS, or by its Ed25519 signature) can check every byte that comes after it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from streamsplit.errors import ManifestError, MissingExtraError

FORMAT = 1
NAME = "manifest.json"
MAX_MANIFEST_BYTES = 16 << 20
DIGEST_BYTES = 32
DTYPES = ("fp32", "fp16", "bf16", "int8")

Size = Annotated[int, Meta(ge=1, le=1 << 40)]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
TensorName = Annotated[str, Meta(min_length=1, max_length=512)]
ChunkName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,255}\Z")]


class RowBlocks(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An embedding that is fetched by blocks of rows: where its rows lie in the chunk, and a hash for each block."""

    rows: Size
    dim: Size  # numbers in a row
    row_bytes: Size  # as stored
    block_rows: Size  # of every block but the last, which may be shorter
    data_offset: Size  # of the first row in the chunk
    digests: bytes  # SHA-256 of the blocks one after the other, 32 bytes each

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.rows // self.block_rows)

    def digest(self, block: int) -> bytes:
        """SHA-256 of one block."""
        return self.digests[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]

    def span(self, block: int) -> tuple[int, int]:
        """Offset and length of one block in the chunk."""
        first = block * self.block_rows
        count = min(self.block_rows, self.rows - first)
        return self.data_offset + first * self.row_bytes, count * self.row_bytes


class Chunk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One safetensors file of the model, named by what it holds and addressed by its hash."""

    name: ChunkName  # such as 'encoder.layer.3'
    role: Literal["resident", "rows", "layer", "head"]
    digest: Digest  # of the stored bytes
    stored_bytes: Size  # as they lie in the folder and travel
    raw_bytes: Size  # of the safetensors file
    memory_bytes: Size  # of its tensors in float32
    encoding: Literal["none", "zstd"] = "none"
    tensors: tuple[TensorName, ...] = ()
    rows: RowBlocks | None = None  # where role is 'rows'


class Delta(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A way from an older revision's chunk to one of this manifest, see `revision_delta`."""

    base: Digest  # what it applies to
    target: Digest  # the chunk that results
    digest: Digest  # of the delta's own bytes
    stored_bytes: Size
    kind: Literal["exact", "int8"]


class Signature(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ed25519 over the manifest's canonical bytes."""

    public_key: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
    value: Annotated[str, Meta(pattern=r"^[0-9a-f]{128}\Z")]


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a client must know before the first chunk; chunks are in the order in which a forward needs them."""

    format: int
    model: Annotated[str, Meta(max_length=512)]  # the name it was chunked under
    model_type: Annotated[str, Meta(max_length=128)]  # of transformers, such as 'bert'
    architecture: Annotated[str, Meta(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,127}\Z")]  # class of transformers
    dtype: Literal["fp32", "fp16", "bf16", "int8"]  # as sent
    config: dict[str, Any]
    generation: dict[str, Any] = {}
    stacks: tuple[TensorName, ...]  # modules that are lists of layers
    chunks: tuple[Chunk, ...]
    deltas: tuple[Delta, ...] = ()
    tied: dict[TensorName, TensorName] = {}  # a tensor's other names -> the one it is stored under
    signature: Signature | None = None

    def chunk(self, name: str) -> Chunk:
        """A chunk by name; raises ManifestError."""
        for chunk in self.chunks:
            if chunk.name == name:
                return chunk
        raise ManifestError(f"got chunk '{name[:80]}', expected one of this model's {len(self.chunks)}")

    @property
    def stored(self) -> dict[str, int]:
        """Everything that may be asked for: digest -> bytes."""
        chunks = {chunk.digest: chunk.stored_bytes for chunk in self.chunks}
        return chunks | {delta.digest: delta.stored_bytes for delta in self.deltas}

    def of_role(self, *roles: str) -> list[Chunk]:
        """Chunks of these roles, in order."""
        return [chunk for chunk in self.chunks if chunk.role in roles]

    @property
    def largest_layer_bytes(self) -> int:
        """Memory that the largest layer or head takes in float32."""
        return max(chunk.memory_bytes for chunk in self.of_role("layer", "head"))

    @property
    def revision(self) -> str:
        """Hex SHA-256 of the canonical bytes: the same model in the same form has the same."""
        return hashlib.sha256(canonical_bytes(self)).hexdigest()


def canonical_bytes(manifest: Manifest) -> bytes:
    """What is hashed and signed: the manifest without its signature, keys in order."""
    return msgspec.json.encode(msgspec.structs.replace(manifest, signature=None), order="sorted")


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of manifest.json."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=1)


def decode_manifest(data: bytes | bytearray | memoryview) -> Manifest:
    """The manifest from its bytes, checked; raises ManifestError."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"got a manifest of {len(data)} bytes, expected at most {MAX_MANIFEST_BYTES}")
    try:
        version = msgspec.json.decode(data, type=_Version).format
        if version != FORMAT:
            raise ManifestError(
                f"got a manifest of format {version}, expected {FORMAT}; chunk the model anew with this version"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ManifestError(f"the manifest does not parse ({error}); chunk the model anew") from None
    _check(manifest)
    return manifest


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a folder of chunks; raises ManifestError with what is wrong with it."""
    path = Path(folder) / NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(
            f"{path}: cannot be read ({error.strerror or error}); make the folder with 'streamsplit weights chunk'"
        ) from None
    try:
        return decode_manifest(data)
    except ManifestError as error:
        raise ManifestError(f"{path}: {error}") from None


def file_name(digest: str) -> str:
    """The name under which a chunk lies in its folder or bucket."""
    return f"{digest}.chunk"


def sign(manifest: Manifest, private_key: bytes) -> Manifest:
    """The manifest with an Ed25519 signature; `private_key` is the 32-byte seed."""
    value = _private(private_key).sign(canonical_bytes(manifest)).hex()
    return msgspec.structs.replace(manifest, signature=Signature(public_key=public_key(private_key), value=value))


def public_key(private_key: bytes) -> str:
    """Hex of the public key that belongs to a 32-byte seed."""
    return str(_private(private_key).public_key().public_bytes_raw().hex())


def _private(seed: bytes) -> Any:
    if len(seed) != 32:
        raise ManifestError(f"got a signing key of {len(seed)} bytes, expected 32 (Ed25519)")
    return _ed25519().Ed25519PrivateKey.from_private_bytes(seed)


def verify(manifest: Manifest, public_key: bytes) -> None:
    """Raises ManifestError unless the manifest carries a good signature by this key."""
    ed25519 = _ed25519()
    if manifest.signature is None:
        raise ManifestError("got an unsigned manifest, expected one signed with the given key; sign it when chunking")
    if manifest.signature.public_key != public_key.hex():
        raise ManifestError(
            f"the manifest is signed by {manifest.signature.public_key[:16]}, expected {public_key.hex()[:16]}"
        )
    from cryptography.exceptions import InvalidSignature

    try:
        key = ed25519.Ed25519PublicKey.from_public_bytes(public_key)
        key.verify(bytes.fromhex(manifest.signature.value), canonical_bytes(manifest))
    except (InvalidSignature, ValueError):
        raise ManifestError("the manifest's signature is wrong: it was changed after it was signed") from None


class _Version(msgspec.Struct):
    format: int


def _check(manifest: Manifest) -> None:
    names = [chunk.name for chunk in manifest.chunks]
    if len(set(names)) != len(names):
        raise ManifestError("got two chunks of the same name, expected each once")
    if not {delta.target for delta in manifest.deltas} <= {chunk.digest for chunk in manifest.chunks}:
        raise ManifestError("got a delta that leads to no chunk of this manifest")
    sizes = {chunk.digest: chunk.stored_bytes for chunk in manifest.chunks}
    if any(delta.stored_bytes > sizes[delta.target] for delta in manifest.deltas):
        raise ManifestError("got a delta that is larger than the chunk that it leads to")
    if not manifest.of_role("layer"):
        raise ManifestError("got a manifest without a layer, expected at least one")
    held = [tensor for chunk in manifest.chunks for tensor in chunk.tensors]
    if len(set(held)) != len(held):
        raise ManifestError("got a tensor in two chunks, expected each in one")
    if not set(manifest.tied.values()) <= set(held) or set(manifest.tied) & set(held):
        raise ManifestError("got tied names that do not lead to stored tensors")
    for chunk in manifest.chunks:
        rows = chunk.rows
        if (chunk.role == "rows") != (rows is not None):
            raise ManifestError(f"chunk '{chunk.name}': rows are described for role 'rows', and only there")
        if chunk.encoding == "none" and chunk.stored_bytes != chunk.raw_bytes:
            raise ManifestError(
                f"chunk '{chunk.name}': got {chunk.stored_bytes} of {chunk.raw_bytes} bytes, not packed"
            )
        if rows is None:
            continue
        if chunk.encoding != "none" or len(chunk.tensors) != 1:
            raise ManifestError(f"chunk '{chunk.name}': rows are one tensor, not compressed")
        if len(rows.digests) != rows.blocks * DIGEST_BYTES:
            raise ManifestError(
                f"chunk '{chunk.name}': got {len(rows.digests)} bytes of hashes for {rows.blocks} blocks"
            )
        if rows.data_offset + rows.rows * rows.row_bytes != chunk.raw_bytes:
            raise ManifestError(f"chunk '{chunk.name}': the rows do not end where the chunk ends")


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingExtraError("signing manifests", "weights", str(error)) from error
    return ed25519
