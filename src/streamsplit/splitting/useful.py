"""Which cuts of a table are worth choosing among: the actions of a learned policy, the rows of oracles and studies."""

from __future__ import annotations

from streamsplit.errors import CutError
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.expected import CutArrays
from streamsplit.splitting.table import CutTable


def useful_cuts(table: CutTable) -> tuple[Cut, ...]:
    """The cuts that no other one makes pointless by being as good in time, bytes, quality, privacy and weights to
    fetch, and clearly better in time on the device or in bytes. Differences within the accuracy of measurement count as
    none. Always with the cut that sends nothing; raises CutError when the table has none.
    """
    c = CutArrays.of(table)
    kept: list[int] = []
    for i in sorted(range(len(table.rows)), key=lambda i: (c.payload_bytes[i], c.edge_ms[i])):
        no_worse = (c.edge_ms <= 1.05 * c.edge_ms[i]) & (c.server_ms <= 1.1 * c.server_ms[i] + 0.2)
        no_worse &= (c.payload_bytes <= c.payload_bytes[i]) & (c.quality_loss <= c.quality_loss[i] + 0.002)
        no_worse &= (c.privacy_risk <= c.privacy_risk[i] + 0.02) & (c.fetch_bytes <= c.fetch_bytes[i])
        better = (c.edge_ms < 0.9 * c.edge_ms[i]) | (c.payload_bytes < 0.95 * c.payload_bytes[i])
        if not c.sends[i] or not any((no_worse & better & c.sends)[j] for j in kept):
            kept.append(i)
    if all(c.sends[kept]):
        raise CutError(f"got a table for '{table.encoder}' without a cut that sends nothing; profile it anew")
    return tuple(table.rows[i].cut for i in sorted(kept))
