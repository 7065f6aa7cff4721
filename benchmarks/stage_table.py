"""The stages of an echo's latency, results of `streamsplit measure-latency --output` side by side, as docs/dialogue.md
shows them: `python -m benchmarks.stage_table RESULT.json ...` prints the table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from streamsplit.evaluation.talk_stages import AIMS_MS, STAGES


def row(stage: str, values: list[dict[str, float]], aim_ms: float) -> str:
    """p50 and p95 of one stage; a p95 that is not below the aim is bold."""
    cells = []
    for spread in values:
        p95 = f"{spread['p95']:.0f}"
        cells.append(f"{spread['p50']:.0f}, {p95 if spread['p95'] < aim_ms else f'**{p95}**'} ms")
    return f"| {stage} | < {aim_ms:g} ms | " + " | ".join(cells) + " |"


def title(found: dict[str, Any]) -> str:
    """What a column is of."""
    link = found["link"]
    if isinstance(link, str):  # a server that was there already
        return f"{found['message_ms']:g} ms, the link {link}"
    jitter = f", jitter {link['jitter_ms']:g}" if link["jitter_ms"] else ""
    name = "" if found["transport"] == "websocket" else "QUIC, "
    return f"{name}{found['message_ms']:g} ms over {link['one_way_ms']:g} ms{jitter}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    found = [json.loads(path.read_text(encoding="utf-8")) for path in parser.parse_args().results]
    print("| stage | aim | " + " | ".join(title(each) for each in found) + " |")
    print("|---|---:|" + "---:|" * len(found))
    for stage in STAGES:
        print(row(stage, [each["stages"][stage] for each in found], AIMS_MS[stage]))
    print(row("total", [each["total"] for each in found], AIMS_MS["total"]))


if __name__ == "__main__":
    main()
