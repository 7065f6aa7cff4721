"""wss: a certificate that is trusted, one that is not, through a listener that ends TLS as a proxy does."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from weight_stream_harness import Running, client, folder_of_chunks, weight_server

from streamsplit.errors import ConfigError, ConnectionRefused
from streamsplit.weights.streaming.manifest import file_name


def certificate(folder: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, and its key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1)).not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    folder.mkdir()
    (folder / "certificate.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "certificate.pem"


@contextlib.contextmanager
def ending_tls(port: int, own: Path) -> Iterator[str]:
    """A listener with this certificate in front of a plain one."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(own, own.with_name("key.pem"))

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(copy(reader, inner_writer), copy(inner_reader, writer))

    async def main(ready: Callable[[int], None]) -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            ready(server.sockets[0].getsockname()[1])
            await asyncio.Event().wait()

    running = Running(main)
    try:
        yield f"wss://127.0.0.1:{running.port}"
    finally:
        running.stop()


def test_chunks_come_through_tls_from_a_server_whose_certificate_is_trusted(tmp_path: Path) -> None:
    manifest = folder_of_chunks(tmp_path / "chunks", size=2_500_000)
    own, other = certificate(tmp_path / "own"), certificate(tmp_path / "other")
    with weight_server(tmp_path / "chunks") as server, ending_tls(server.port, own) as url:
        with client(url, tls_ca_file=str(own)) as reader:
            assert reader.manifest().revision == manifest.revision
            for chunk in manifest.chunks:
                expected = (tmp_path / "chunks" / file_name(chunk.digest)).read_bytes()
                assert reader.fetch(chunk.digest, chunk.stored_bytes).result(30).tobytes() == expected
        for tls_ca_file in ("", str(other)):
            with client(url, tls_ca_file=tls_ca_file) as reader, pytest.raises(ConnectionRefused) as refused:
                reader.manifest()
            said = str(refused.value)
            assert "certificate is not trusted" in said and "tls_ca_file" in said and "\n" not in said


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_a_file_that_holds_no_certificates_is_one_clear_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with (
        pytest.raises(ConfigError, match=r"'tls_ca_file': got '.*ca\.pem', expected a PEM file of certificates"),
        client("wss://127.0.0.1:9", tls_ca_file=str(path)),
    ):
        pass
