"""QUIC's certificate: made once, kept, and refused where its key is another's or missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamsplit.edge.settings import EdgeSettings
from streamsplit.errors import ConfigError

pytest.importorskip("cryptography")

from streamsplit.server.certificate import certificate_files  # needs cryptography


def test_a_key_of_another_certificate_is_refused(tmp_path: Path) -> None:
    one, other = certificate_files("", "", tmp_path / "one"), certificate_files("", "", tmp_path / "other")
    assert one.key.stat().st_mode & 0o777 == 0o600 and one.fingerprint != other.fingerprint
    assert certificate_files(str(one.certificate), str(one.key), tmp_path).fingerprint == one.fingerprint
    with pytest.raises(ConfigError, match=r"'server\.quic_key': .* is not the key of"):
        certificate_files(str(one.certificate), str(other.key), tmp_path)


@pytest.mark.parametrize("lost", ["certificate", "key"])
def test_half_of_a_pair_is_not_replaced_silently(tmp_path: Path, lost: str) -> None:
    files = certificate_files("", "", tmp_path)
    getattr(files, lost).unlink()
    with pytest.raises(ConfigError, match=r"without .*; bring it back, or delete the one"):
        certificate_files("", "", tmp_path)


def test_authorities_are_for_wss_and_quic() -> None:
    for url in ("wss://host/v1/stream", "quic://host:1"):
        made = EdgeSettings.from_mapping({"server": {"url": url, "tls_ca_file": "ca.pem"}})
        assert made.server.tls_ca_file == "ca.pem"
    with pytest.raises(ConfigError, match="is for wss:// and quic:// only"):
        EdgeSettings.from_mapping({"server": {"url": "ws://host/v1/stream", "tls_ca_file": "ca.pem"}})
    with pytest.raises(ConfigError, match="is for quic:// only"):
        EdgeSettings.from_mapping({"server": {"url": "wss://host/v1/stream", "tls_fingerprint": "0" * 64}})
