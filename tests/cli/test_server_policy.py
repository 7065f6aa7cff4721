"""`streamsplit server`: a policy file that cannot be pushed is one error, when checked and when started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamsplit.cli.main import main


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ("{file: none.npz, key: k}", "'policy.file': none.npz cannot be read"),
        ("{file: bad.npz, key: k}", "'policy.file': bad.npz: not a policy file"),
        ("{file: none.npz}", "without a key; set policy.key"),
        ("{version: 0}", "'policy.version': got 0"),
    ],
)
def test_a_policy_that_cannot_be_pushed_is_one_error(tmp_path: Path, capsys, monkeypatch, policy: str, why: str):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMSPLIT_POLICY_KEY", raising=False)
    Path("bad.npz").write_bytes(b"no policy")
    Path("server.yaml").write_text(f"server: {{port: 0, data_dir: data}}\npolicy: {policy}\n")
    for words in (["server", "validate", "server.yaml"], ["server", "--config", "server.yaml"]):
        assert main(words) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and why in lines[0]
    assert main(["server", "validate", "server.yaml", "--json"]) == 2
    assert why in json.loads(capsys.readouterr().out)["problem"]
