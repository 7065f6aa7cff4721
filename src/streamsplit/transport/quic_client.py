"""A QUIC connection from the device's side: who answers is checked before anything is said."""

from __future__ import annotations

import asyncio
import socket
import ssl
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

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
    """Connects to the first of the host's addresses that answers, tried in the resolver's order; each gets an equal
    part of the time that is left. Raises ConnectionRefused and ConfigError where trying again cannot help, OSError
    where it may: its text names every address that was tried."""
    loop = asyncio.get_running_loop()
    found = dict.fromkeys(await loop.getaddrinfo(host, port, type=socket.SOCK_DGRAM))
    configured = _configured(trust, host)
    deadline_s = loop.time() + timeout_s
    failures: list[str] = []
    for tried, (family, _, protocol, _, address) in enumerate(found):
        share_s = max(deadline_s - loop.time(), 0.0) / (len(found) - tried)
        try:
            pipe = await _connected(family, protocol, address, configured, count, share_s)
        except (OSError, asyncio.TimeoutError) as error:
            failures.append(f"{address[0]}: {str(error) or type(error).__name__}")
            continue
        if trust.fingerprint and pipe.fingerprint != trust.fingerprint:
            got = pipe.fingerprint
            pipe.abort()
            raise ConnectionRefused(
                f"{host}:{port}: got a certificate with the fingerprint {got}, expected {trust.fingerprint}; set "
                "server.tls_fingerprint to what the server prints, if it is yours"
            )
        return pipe
    raise ConnectionError(
        f"no QUIC connection to {host}:{port} ({'; '.join(failures)}); is server.quic_port set at the server, and does "
        "UDP get through? ws:// goes over TCP"
    )


async def _connected(
    family: int, protocol: int, address: Any, configured: QuicConfiguration, count: ByteCount, timeout_s: float
) -> QuicPipe:
    """A connection to one address; raises as `_explain`, and OSError where there is no way there."""
    opened = socket.socket(family, socket.SOCK_DGRAM, protocol)
    try:
        opened.setblocking(False)
        opened.connect(address)  # so that a closed port is heard of
        transport, pipe = await asyncio.get_running_loop().create_datagram_endpoint(
            partial(QuicPipe, QuicConnection(configuration=configured), count=count, connected_socket=True), sock=opened
        )
    except BaseException:
        opened.close()
        raise
    try:
        pipe.connect(address)
        await asyncio.wait_for(pipe.wait_connected(), timeout_s)
    except BaseException as error:
        pipe.abort()
        transport.close()
        if isinstance(error, (asyncio.TimeoutError, ConnectionError)):
            _explain(pipe, address, timeout_s)
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


def _explain(pipe: QuicPipe, address: Any, timeout_s: float) -> NoReturn:
    """Says in one line why there is no connection."""
    host, port = address[:2]
    if pipe.error_code in _DISTRUST:
        raise ConnectionRefused(
            f"{host}:{port}: the server's certificate is not trusted ({pipe.ended}); set server.tls_fingerprint to "
            "what the server prints, or server.tls_ca_file"
        )
    if pipe.error_code == _NO_PROTOCOL:
        raise ConnectionRefused(f"{host}:{port}: another program answers there; check server.quic_port at the server")
    if pipe.refused:
        raise ConnectionError(f"nobody listens on UDP port {port}")
    if pipe.ended:
        raise ConnectionError(pipe.ended)
    raise ConnectionError(f"no answer over UDP within {timeout_s:.3g} s")
