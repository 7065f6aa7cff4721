"""The cut table: what each cut of one encoder on one device costs, and how faithful it is. Policies choose its rows."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from streamsplit.encoders.factory import NUM_BLOCKS, EncoderSettings
from streamsplit.errors import CutError
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.device import DeviceProfile, device_profile
from streamsplit.wire.media import Encoding

TABLE_FORMAT = 2
READABLE_FORMATS = (1, 2)  # 1 had neither accuracy nor fetch_bytes: they read as nan and 0
_NUMBERS = (
    "edge_ms", "server_ms", "payload_bytes", "energy_mj", "agreement", "privacy_risk", "accuracy", "fetch_bytes",
)  # fmt: skip
_MISSING = {"fetch_bytes": 0.0}  # nan for the others
_ARCHITECTURE = ("name", "width", "embedding_dim")  # of the encoder's settings: what decides the shapes of its weights


class CutRow(NamedTuple):
    """One cut's measured cost for one window."""

    cut: Cut
    edge_ms: float  # device time on an idle device: features, blocks 1..k, packing
    server_ms: float  # unpacking and the rest of the encoder, at batch 1
    payload_bytes: float  # mean payload of the frame, 20-byte media header included; 0 for a cut that sends nothing
    energy_mj: float  # device energy by the model of device.py, marginal
    agreement: float  # mean cosine of the embedding that results with the one of the full fp32 path, in [-1, 1]
    privacy_risk: float = math.nan  # in [0, 1]: share of the input that what crosses gives away; nan until measured
    accuracy: float = math.nan  # in [0, 1]: a probe's on the embedding that results, measured; nan until measured
    fetch_bytes: float = 0.0  # serialised weights of blocks 1..k, which a device that holds none fetches for the cut


class CutTable(NamedTuple):
    """Rows in order of depth, for one encoder on one device; build it with `make_table`, which checks it."""

    encoder: str
    device: str
    factor: float  # device factor that `edge_ms` holds already
    num_blocks: int
    rows: tuple[CutRow, ...]
    meta: Mapping[str, Any]  # command, machine, settings: where the numbers come from

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """The cuts that have a row."""
        return tuple(row.cut for row in self.rows)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the encoder's name and architecture, the number of blocks and the cuts in order.

        What a policy is bound to: the same for a table measured again or scaled to another device, another one as
        soon as a row is added or left out.
        """
        about = [self.encoder, self._architecture(), self.num_blocks, [str(cut) for cut in self.cuts]]
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def _architecture(self) -> dict[str, Any]:
        settings = self.meta.get("encoder")
        known = settings if isinstance(settings, Mapping) else {}
        return {name: known[name] for name in _ARCHITECTURE if name in known}

    def row(self, cut: Cut) -> CutRow:
        """The row of `cut`; raises CutError."""
        for row in self.rows:
            if row.cut == cut:
                return row
        raise CutError(f"got cut {cut}, expected one of {', '.join(map(str, self.cuts))}")

    def only(self, cuts: Iterable[Cut]) -> CutTable:
        """The same table with these cuts alone; raises CutError when one has no row or none is left."""
        kept = {self.row(cut).cut for cut in cuts}
        return make_table(self._replace(rows=tuple(row for row in self.rows if row.cut in kept)))

    def joined(self, measured: CutTable) -> CutTable:
        """With the rows of `measured`, which replace those of the same cuts; its meta says which they are and how.

        Raises CutError when it is of another kind of encoder or device, or brings quality where this one has none, or
        the other way round.
        """
        for what, own, theirs in (
            ("encoder", (self.encoder, self._architecture()), (measured.encoder, measured._architecture())),
            ("device", (self.device, self.factor), (measured.device, measured.factor)),
            ("blocks", self.num_blocks, measured.num_blocks),
            ("quality", "quality" in self.meta, "quality" in measured.meta),
        ):
            if own != theirs:
                raise CutError(f"the new rows do not belong to the table: got {what} {theirs}, expected {own}")
        new = {str(cut) for cut in measured.cuts}
        said = {name: value for name, value in measured.meta.items() if name not in ("encoder", "quality")}
        earlier = [entry for entry in self.meta.get("joined", []) if not set(entry["cuts"]) <= new]
        meta = {**self.meta, "joined": [*earlier, {"cuts": sorted(new), **said}]}
        if "quality" in meta:
            epsilon = {**self.meta["quality"].get("epsilon", {}), **measured.meta["quality"].get("epsilon", {})}
            meta["quality"] = {**self.meta["quality"], "epsilon": epsilon}
        kept = tuple(row for row in self.rows if str(row.cut) not in new)
        return make_table(self._replace(rows=kept + measured.rows, meta=meta))

    def supported(self, bottlenecks: Iterable[int] | None) -> CutTable:
        """The rows that a device can do whose encoder has bottlenecks after these blocks; None: one without an encoder.

        Raises CutError when none is left.
        """
        if bottlenecks is None:
            return self.only([cut for cut in self.cuts if cut.block == 0])
        blocks = set(bottlenecks)
        kept = [cut for cut in self.cuts if cut.encoding is not Encoding.BOTTLENECK_INT8 or cut.block in blocks]
        return self if len(kept) == len(self.rows) else self.only(kept)

    def check_encoder(self, settings: EncoderSettings) -> CutTable:
        """Itself, if it was measured on this kind of encoder: name, blocks, width, embedding size, and no bottleneck
        that the encoder does not have. Raises CutError with the first difference.

        The seed may differ: it changes the weights, not what a cut costs.
        """
        own = self.meta.get("encoder")
        known: Mapping[str, Any] = own if isinstance(own, Mapping) else {}
        pairs = [("encoder", self.encoder, settings.name), ("blocks", self.num_blocks, NUM_BLOCKS[settings.name])]
        if settings.name == "mobilenet":  # ResNet-18 has one width
            pairs.append(("width", known.get("width", settings.width), settings.width))
        pairs.append(("embedding_dim", known.get("embedding_dim", settings.embedding_dim), settings.embedding_dim))
        for what, measured, running in pairs:
            if measured != running:
                raise CutError(
                    f"the cut table was measured with {what} {measured}, expected {running} as this device runs; "
                    "run `streamsplit profile` for its encoder"
                )
        narrowed = sorted({cut.block for cut in self.cuts if cut.encoding is Encoding.BOTTLENECK_INT8})
        missing = [block for block in narrowed if block not in settings.bottleneck_blocks]
        if missing:
            raise CutError(
                f"the cut table was measured with bottlenecks after {narrowed}, expected only some of "
                f"{list(settings.bottleneck_blocks)} as this device runs; run `streamsplit profile` for its encoder"
            )
        return self

    def for_device(self, device: DeviceProfile) -> CutTable:
        """The table as it would be on `device`: edge time scaled by the factors, energy by the device's model."""
        ratio = device.factor / self.factor
        rows = tuple(
            row._replace(edge_ms=edge_ms, energy_mj=device.energy_mj(edge_ms, row.payload_bytes))
            for row, edge_ms in ((row, row.edge_ms * ratio) for row in self.rows)
        )
        return self._replace(device=device.name, factor=device.factor, rows=rows)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; nan becomes null."""
        rows = []
        for row in self.rows:
            values = {name: getattr(row, name) for name in _NUMBERS}
            rows.append(
                {
                    "cut": str(row.cut),
                    **{name: None if math.isnan(value) else round(value, 6) for name, value in values.items()},
                }
            )
        return {
            "format": TABLE_FORMAT,
            "encoder": self.encoder,
            "device": self.device,
            "factor": self.factor,
            "num_blocks": self.num_blocks,
            "meta": dict(self.meta),
            "rows": rows,
        }

    def save(self, path: str | Path) -> None:
        """Writes the table as JSON; raises CutError."""
        try:
            Path(path).write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise CutError(f"{path}: cut table cannot be written ({error.strerror or error})") from error


def make_table(table: CutTable) -> CutTable:
    """The table with its rows checked and in order; raises CutError on a bad number, a doubled or impossible cut."""
    if not table.rows:
        raise CutError(f"got an empty cut table for encoder '{table.encoder}', expected at least one row")
    if not (math.isfinite(table.factor) and table.factor > 0):
        raise CutError(f"got device factor {table.factor}, expected a positive number")
    seen: set[Cut] = set()
    for row in table.rows:
        row.cut.check(table.num_blocks)
        if row.cut in seen:
            raise CutError(f"got two rows for cut {row.cut}, expected one")
        seen.add(row.cut)
        for name in ("edge_ms", "server_ms", "payload_bytes", "energy_mj", "fetch_bytes"):
            value = getattr(row, name)
            if not (math.isfinite(value) and value >= 0):
                raise CutError(f"cut {row.cut}: got {name} {value}, expected a number >= 0")
        if not -1.001 <= row.agreement <= 1.001:
            raise CutError(f"cut {row.cut}: got agreement {row.agreement}, expected -1..1")
        for name in ("privacy_risk", "accuracy"):
            value = getattr(row, name)
            if not (math.isnan(value) or 0 <= value <= 1):
                raise CutError(f"cut {row.cut}: got {name} {value}, expected 0..1, or nan where it was not measured")
    return table._replace(rows=tuple(sorted(table.rows, key=lambda row: row.cut)))


def table_from_dict(values: Mapping[str, Any], source: str = "cut table") -> CutTable:
    """Reads what `CutTable.as_dict` gives; raises CutError naming `source`."""
    try:
        if values["format"] not in READABLE_FORMATS:
            expected = " or ".join(map(str, READABLE_FORMATS))
            raise CutError(f"got format {values['format']}, expected {expected}")
        rows = tuple(
            CutRow(
                Cut.parse(str(row["cut"])),
                *(_MISSING.get(name, math.nan) if row.get(name) is None else float(row[name]) for name in _NUMBERS),
            )
            for row in values["rows"]
        )
        table = make_table(
            CutTable(
                str(values["encoder"]),
                str(values["device"]),
                float(values["factor"]),
                int(values["num_blocks"]),
                rows,
                dict(values["meta"]),
            )
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CutError(
            f"{source}: not a cut table ({type(error).__name__}: {error}); run `streamsplit profile`"
        ) from None
    except CutError as error:
        raise CutError(f"{source}: {error}") from None
    return table


def load_table(path: str | Path) -> CutTable:
    """Reads a table that `streamsplit profile --output` wrote; raises CutError."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise CutError(f"{path}: cut table cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CutError(f"{path}: not JSON ({error}); run `streamsplit profile --output {path}`") from None
    return table_from_dict(values, str(path))


def packaged_table(encoder: str, device: DeviceProfile | str = "host") -> CutTable:
    """The table that ships with the package for `encoder`, scaled to `device`: for devices not profiled yet.

    Measured by `streamsplit profile` on the machine named in its `meta`; raises CutError when none ships.
    """
    name = f"{encoder}.json"
    file = resources.files("streamsplit.splitting") / "tables" / name
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CutError(
            f"no cut table ships for encoder '{encoder}': run `streamsplit profile --encoder {encoder} --output FILE`"
        ) from None
    table = table_from_dict(values, f"packaged {name}")
    return table.for_device(device_profile(device) if isinstance(device, str) else device)
