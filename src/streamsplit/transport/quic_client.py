"""A QUIC connection from the device's side: who answers is checked before anything is said."""

from __future__ import annotations

import asyncio
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import NamedTuple, NoReturn

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography.x509 import load_pem_x509_certificates

from streamsplit.errors import ConfigError, ConnectionRefused
from streamsplit.transport.count import ByteCount
from streamsplit.transport.quic import QuicPipe, configuration

_ALERT = 0x100  # TLS alerts travel as QUIC errors from here on (RFC 9001, 4.8)
_DISTRUST = range(_ALERT + 42, _ALERT + 50)  # bad_certificate to access_denied, unknown_ca among them
_NO_PROTOCOL = _ALERT + 120  # no_application_protocol


class Trust(NamedTuple):
    """How the server is known: by its certificate's fingerprint, by whom it was signed, or not at all."""

    fingerprint: str = ""  # SHA-256, 64 hex digits
    ca_file: str = ""  # PEM; "" = the public authorities
    unverified: bool = False  # whoever answers is believed


async def open_quic(host: str, port: int, trust: Trust, count: ByteCount, timeout_s: float) -> QuicPipe:
    """Connects; raises ConnectionRefused and ConfigError where trying again cannot help, OSError where it may."""
    loop = asyncio.get_running_loop()
    family, kind, protocol, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM))[0]
    quic = QuicConnection(configuration=_configured(trust, host))
    opened = socket.socket(family, kind, protocol)
    try:
        opened.setblocking(False)
        opened.connect(address)  # so that a closed port is heard of
        transport, pipe = await loop.create_datagram_endpoint(
            partial(QuicPipe, quic, count=count, connected_socket=True), sock=opened
        )
    except BaseException:
        opened.close()
        raise
    try:
        pipe.connect(address)
        await asyncio.wait_for(pipe.wait_connected(), timeout_s)
        if trust.fingerprint and pipe.fingerprint != trust.fingerprint:
            raise ConnectionRefused(
                f"{host}:{port}: got a certificate with the fingerprint {pipe.fingerprint}, expected "
                f"{trust.fingerprint}; set server.tls_fingerprint to what the server prints, if it is yours"
            )
    except BaseException as error:
        pipe.abort()
        transport.close()
        if isinstance(error, (asyncio.TimeoutError, ConnectionError)):
            _explain(pipe, host, port, timeout_s)
        raise
    return pipe


def _configured(trust: Trust, host: str) -> QuicConfiguration:
    made = configuration(is_client=True)
    made.server_name = host
    if trust.unverified or trust.fingerprint:
        made.verify_mode = ssl.CERT_NONE  # the handshake still proves that the peer holds its certificate's key
    elif trust.ca_file:
        try:
            data = Path(trust.ca_file).read_bytes()
            load_pem_x509_certificates(data)
        except (OSError, ValueError) as error:
            raise ConfigError(f"'server.tls_ca_file': {trust.ca_file} is no PEM file ({error})") from error
        made.load_verify_locations(cadata=data)
    return made


def _explain(pipe: QuicPipe, host: str, port: int, timeout_s: float) -> NoReturn:
    """Says in one line why there is no connection."""
    if pipe.error_code in _DISTRUST:
        raise ConnectionRefused(
            f"{host}:{port}: the server's certificate is not trusted ({pipe.ended}); set server.tls_fingerprint to "
            "what the server prints, or server.tls_ca_file"
        )
    if pipe.error_code == _NO_PROTOCOL:
        raise ConnectionRefused(f"{host}:{port}: another program answers there; check server.quic_port at the server")
    if pipe.refused:
        raise ConnectionError(f"nobody listens on UDP port {port} of {host}; is server.quic_port set at the server?")
    if pipe.ended:
        raise ConnectionError(f"no QUIC connection ({pipe.ended})")
    raise ConnectionError(
        f"no answer over UDP from {host}:{port} within {timeout_s:g} s; is server.quic_port set at the "
        "server, and does UDP get through? ws:// goes over TCP"
    )
