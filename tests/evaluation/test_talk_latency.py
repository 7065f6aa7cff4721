"""The latency of an echo: the sum of its stages on known times; one real run is in tests/runtime."""

from __future__ import annotations

import numpy as np
import pytest

from streamsplit.cli.main import main
from streamsplit.evaluation.talk_latency import STAGES, summary
from streamsplit.evaluation.talk_plot import save_stages


def test_stages_add_up_to_the_total_and_the_link_is_halved(tmp_path) -> None:
    """Recorded at 0, sent at 40, the server holds it for 6, back after 46 more on the link, played 50 after that."""
    rows = (
        np.tile(np.array([[0.0, 40.0, 92.0, 6.0, 142.0]]), (20, 1)) + np.array([1, 1, 1, 0, 1]) * np.arange(20)[:, None]
    )
    found = summary(rows, 20.0, 6.5)
    means = {name: values["mean"] for name, values in found["stages"].items()}
    assert tuple(means) == STAGES
    assert means == {"capture": 20, "gathering": 40, "uplink": 23, "server": 6, "downlink": 23, "waiting": 50}
    assert found["total"]["p50"] == pytest.approx(sum(means.values()) + 6.5)
    save_stages({**found, "message_ms": 60.0}, tmp_path / "stages.png")
    assert (tmp_path / "stages.png").read_bytes().startswith(b"\x89PNG")


def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code, text in (
        (["--iterations", "3"], 2, "--iterations 3"),
        (["--one-way-ms", "-1"], 2, "--one-way-ms -1"),
        (["--loss", "5"], 2, "--loss 5 with --transport websocket"),
        (["--loss", "100", "--transport", "quic"], 2, "expected 0 to below 100"),
    ):
        assert main(["measure-latency", *words]) == code
        shown = capsys.readouterr().err
        assert text in shown and shown.count("\n") == 1
