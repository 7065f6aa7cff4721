"""The server's certificate for QUIC: the owner's, or one that it signs itself and keeps."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from streamsplit.errors import ConfigError

_NAME = "streamsplit"
_VALID_DAYS = 3650  # devices know it by its fingerprint; a new one would lock them out


class CertificateFiles(NamedTuple):
    """Where it lies, and its SHA-256 as devices pin it."""

    certificate: Path
    key: Path
    fingerprint: str  # 64 hex digits


def certificate_files(certificate: str, key: str, folder: Path) -> CertificateFiles:
    """The files named, or those in `folder`, which are made if they are not there. Raises ConfigError."""
    paths = (
        (Path(certificate), Path(key)) if certificate else (folder / "quic-certificate.pem", folder / "quic-key.pem")
    )
    there = [path for path in paths if path.exists()]
    if not certificate and len(there) == 1:
        raise ConfigError(
            f"'server.quic_certificate': got {there[0]} without {next(p for p in paths if p != there[0])}; bring it "
            "back, or delete the one for a new pair, whose fingerprint devices must be told"
        )
    try:
        if not there and not certificate:
            folder.mkdir(parents=True, exist_ok=True)
            _make(*paths)
        first = x509.load_pem_x509_certificates(paths[0].read_bytes())[0]
        key_of = load_pem_private_key(paths[1].read_bytes(), None).public_key()
    except (OSError, ValueError) as error:
        raise ConfigError(f"'server.quic_certificate': {paths[0]} cannot be read or made ({error})") from error
    if _plain(key_of) != _plain(first.public_key()):
        raise ConfigError(f"'server.quic_key': {paths[1]} is not the key of {paths[0]}")
    return CertificateFiles(*paths, first.fingerprint(hashes.SHA256()).hex())


def _plain(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _make(certificate: Path, key: Path) -> None:
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _NAME)])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))  # clocks of devices are not always right
        .not_valid_after(now + datetime.timedelta(days=_VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
        .sign(secret, hashes.SHA256())
    )
    data = secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for path, content, mode in ((key, data, 0o600), (certificate, made.public_bytes(Encoding.PEM), 0o644)):
        partial = path.with_suffix(".part")
        partial.unlink(missing_ok=True)
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
            out.write(content)
        partial.replace(path)
