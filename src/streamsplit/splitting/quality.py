"""What the server's view is worth, cut by cut: agreement and epsilon, a probe's accuracy, what crosses of the sound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from streamsplit.encoders.base import SplitEncoder
from streamsplit.encoders.crossing import unpack_crossing
from streamsplit.encoders.embedding_codec import unpack_embedding
from streamsplit.errors import CutError
from streamsplit.splitting.confidence import ExitRule
from streamsplit.splitting.cut import ACTIVATION_ENCODINGS, Cut
from streamsplit.splitting.paths import CutPaths, Pair
from streamsplit.splitting.privacy import DECODER_STEPS, Decoder, Evidence, variance_share
from streamsplit.splitting.table import CutTable
from streamsplit.wire.media import Encoding

Floats = NDArray[np.float32]
Probe = Callable[[Floats], Sequence[str]]
"""Labels of embeddings [n, d], as somebody says them who learned from embeddings of the full path."""
_BATCH = 32


class Material(NamedTuple):
    """Labelled sound; no recording is on both sides."""

    name: str  # what it is, for the table's meta
    train: Floats  # [n, f, t] log-mel: the decoders learn from these
    pairs: list[Pair]  # held-out windows, each with the one before it, clip after clip
    labels: list[str]  # of the held-out windows
    clips: list[str]  # which recording each of them is from: what is independent of each other


class CutQuality(NamedTuple):
    """One cut over the held-out windows."""

    agreement: float  # mean cosine with the full path's embedding
    epsilon: float  # root mean square relative error of the embedding: the eps of v1's theorem (algorithms, section 10)
    accuracy: float  # the probe's; nan without one
    difference_error: float  # standard error of its difference to the full path's accuracy, over recordings; nan
    privacy_risk: float  # nan where it was not asked for


class Quality(NamedTuple):
    """Every cut, and what the rows are to be compared with."""

    cuts: dict[Cut, CutQuality]
    meta: dict[str, Any]
    exit_shares: dict[int, float]  # of held-out windows whose exit was sure, by block


def measure_quality(
    encoder: SplitEncoder,
    material: Material,
    cuts: Iterable[Cut],
    *,
    probe: Probe | None = None,
    uncertainty: Callable[[Floats], float] | None = None,
    privacy_windows: int = 0,
    seed: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Quality:
    """Measures `cuts` (in order of depth) on an encoder in evaluation mode, without gradients.

    An exit's row is what the device does: windows that the exit is sure of (`ExitRule` on `uncertainty` of the early
    embedding, nats) cross early, the others as embeddings; without `uncertainty` all cross early. `privacy_windows` of
    the training windows, and at most as many held-out ones, serve the decoders; 0 leaves the risk out. Whoever has a
    map can compute everything deeper from it: its risk is at least theirs. `progress` is called after each cut. Raises
    CutError without held-out windows.
    """
    if not material.pairs:
        raise CutError(f"{material.name}: got no held-out windows, expected some to measure cuts on")
    bench = _Bench(encoder, material, probe, uncertainty, privacy_windows, seed)
    results = {}
    for cut in cuts:
        results[cut] = bench.measure(cut)
        progress()
    results = _held_to_deeper(results)
    return Quality(results, bench.meta(results), bench.exit_shares)


def quality_of(table: CutTable) -> Quality:
    """What a table holds of the quality of its cuts, to be kept while costs are measured anew: it is the encoder's, not
    the device's. Raises CutError for a table without."""
    meta = table.meta.get("quality")
    if not isinstance(meta, Mapping) or not isinstance(meta.get("exits", {}), Mapping):
        raise CutError("got a cut table without quality, expected one that `streamsplit profile` made without --quick")
    epsilon, exits = meta.get("epsilon", {}), meta.get("exits", {})
    cuts = {
        row.cut: CutQuality(
            row.agreement, float(epsilon.get(str(row.cut), math.nan)), row.accuracy, math.nan, row.privacy_risk
        )
        for row in table.rows
    }
    shares = {row.cut.block: 1.0 for row in table.rows if row.cut.encoding is Encoding.EXIT_FP16}
    shares |= {int(block): float(values["share"]) for block, values in exits.items()}
    return Quality(cuts, dict(meta), shares)


class _Bench:
    def __init__(
        self,
        encoder: SplitEncoder,
        material: Material,
        probe: Probe | None,
        uncertainty: Callable[[Floats], float] | None,
        privacy_windows: int,
        seed: int,
    ) -> None:
        self.encoder, self.material, self.probe, self.uncertainty, self.seed = (
            encoder, material, probe, uncertainty, seed,
        )  # fmt: skip
        self.paths = CutPaths(encoder, material.pairs)
        self.full = np.stack([self.paths.full(i) for i in range(len(self.paths))])
        self.labels = np.array(material.labels)
        self.full_hits = self._hits(self.full)
        self.exits: dict[str, dict[str, float]] = {}
        self.exit_shares: dict[int, float] = {}
        rng = np.random.default_rng(seed)
        self.learn = material.train[_some(len(material.train), privacy_windows, rng)]
        self.tested = _some(len(self.paths), privacy_windows, rng)
        self.heard = np.stack([material.pairs[i][1].features for i in self.tested]) if privacy_windows else self.full
        self._decoders: dict[tuple[int, str], Decoder] = {}

    def measure(self, cut: Cut) -> CutQuality:
        if not cut.sends:
            return self._quality(cut, self.full, 0.0)
        path = self.paths.path(cut)
        payloads = [path.pack(i) for i in range(len(self.paths))]
        z = np.stack([path.complete(i, payload) for i, payload in enumerate(payloads)])
        risk = self._risk(cut, payloads) if len(self.learn) else math.nan
        if cut.encoding is Encoding.EXIT_FP16:
            z, risk = self._mixed(cut, z, risk)
        return self._quality(cut, z, risk)

    def meta(self, results: dict[Cut, CutQuality]) -> dict[str, Any]:
        about: dict[str, Any] = {
            "material": self.material.name,
            "held_out_windows": len(self.paths),
            "held_out_recordings": len(set(self.material.clips)),
            "epsilon": {str(cut): round(quality.epsilon, 5) for cut, quality in results.items()},
        }
        if self.probe is not None:
            errors = [quality.difference_error for quality in results.values()]
            about["full_accuracy"] = round(float(self.full_hits.mean()), 4)
            about["full_accuracy_standard_error"] = round(self._standard_error(self.full_hits), 4)
            about["largest_standard_error_of_a_difference"] = round(max(errors), 4)
        if self.exits:
            about["exits"] = self.exits
        if len(self.learn):
            about["privacy"] = {"decoder_windows": len(self.learn), "tested_windows": len(self.tested)}
        return about

    def _quality(self, cut: Cut, z: Floats, risk: float) -> CutQuality:
        cosine = np.minimum((z * self.full).sum(1), 1.0)
        hits = self._hits(z)
        return CutQuality(
            agreement=float(cosine.mean()),
            epsilon=float(np.sqrt(np.square(z - self.full).sum(1).mean())),  # both of norm 1
            accuracy=float(hits.mean()),
            difference_error=self._standard_error(hits - self.full_hits),
            privacy_risk=risk,
        )

    def _mixed(self, cut: Cut, early: Floats, risk: float) -> tuple[Floats, float]:
        """Embeddings and risk of an exit that is used where it is sure."""
        if self.uncertainty is None:
            self.exit_shares[cut.block] = 1.0
            return early, risk
        sure = sure_windows(early, cut.block, self.uncertainty)
        share = float(sure.mean())
        self.exit_shares[cut.block] = share
        values = {
            "share": share,
            "agreement_where_sure": _mean((early * self.full).sum(1)[sure]),
            "agreement_everywhere": _mean((early * self.full).sum(1)),
        }
        if self.probe is not None:
            hits = self._hits(early)
            values |= {
                "accuracy_where_sure": _mean(hits[sure]),
                "full_accuracy_where_sure": _mean(self.full_hits[sure]),
                "accuracy_everywhere": _mean(hits),
            }
        self.exits[str(cut.block)] = {name: round(value, 4) for name, value in values.items()}
        if not math.isnan(risk):
            last = Cut(self.encoder.num_blocks, Encoding.EMBEDDING_FP16)
            whole = self._decoder(last).risk(Evidence(self.full[self.tested]), self.heard)
            risk = share * risk + (1.0 - share) * whole
        return np.where(sure[:, None], early, self.full), risk

    def _hits(self, z: Floats) -> NDArray[np.float64]:
        """1 for each window that the probe names rightly; nan without a probe."""
        if self.probe is None:
            return np.full(len(z), np.nan)
        return (np.array(list(self.probe(z))) == self.labels).astype(np.float64)

    def _standard_error(self, values: NDArray[np.float64]) -> float:
        """Of the mean of values [n], whose windows depend on each other within a recording."""
        clips = np.array(self.material.clips)
        names = sorted(set(self.material.clips))
        if len(names) < 2:
            return math.nan
        mean = values.mean()
        sums = np.array([(values[clips == name] - mean).sum() for name in names])
        return float(np.sqrt(np.square(sums).sum() * len(names) / (len(names) - 1)) / len(values))

    def _risk(self, cut: Cut, payloads: list[bytes]) -> float:
        if cut.block == 0:
            drawn = np.stack([self.paths.heard(i, cut, payloads[i]) for i in self.tested])
            return variance_share(self.heard, drawn, self.learn.mean((0, 2)))
        return self._decoder(cut).risk(self._evidence(cut, [payloads[i] for i in self.tested]), self.heard)

    def _decoder(self, cut: Cut) -> Decoder:
        """The decoder of a cut: one for a block's exact map (tested on what each encoding makes of it), one for the map
        behind its bottleneck, one for embeddings of either kind."""
        kind = "map" if cut.encoding in ACTIVATION_ENCODINGS else "embedding"
        if cut.encoding is Encoding.BOTTLENECK_INT8:
            kind = "narrowed"
        key = (cut.block, kind)
        if key not in self._decoders:
            self._decoders = {  # of other blocks only the last one's is needed again, by the exits
                known: decoder
                for known, decoder in self._decoders.items()
                if known[0] in (cut.block, self.encoder.num_blocks)
            }
            self._decoders[key] = Decoder(self._exact(cut), self.learn, steps=DECODER_STEPS, seed=self.seed)
        return self._decoders[key]

    def _exact(self, cut: Cut) -> Evidence:
        """What the decoder learns from: the training windows' crossings before they are rounded."""
        maps, vectors = [], []
        for start in range(0, len(self.learn), _BATCH):
            crossing = self.encoder.forward_to(torch.from_numpy(self.learn[start : start + _BATCH]), cut.block)
            if cut.encoding in ACTIVATION_ENCODINGS:
                h = crossing.h
                if cut.encoding is Encoding.BOTTLENECK_INT8:
                    h = self.encoder.bottlenecks[cut.block](h)
                maps.append(h.numpy())
                vectors.append(crossing.partial.numpy())
            else:
                vectors.append(self.encoder.exit_embedding(crossing, cut.block).numpy())
        return Evidence(np.concatenate(vectors), np.concatenate(maps) if maps else None)

    def _evidence(self, cut: Cut, payloads: list[bytes]) -> Evidence:
        if cut.encoding not in ACTIVATION_ENCODINGS:
            return Evidence(np.stack([unpack_embedding(payload) for payload in payloads]))
        through = self.encoder.bottlenecks[cut.block] if cut.encoding is Encoding.BOTTLENECK_INT8 else None
        crossings = [unpack_crossing(payload, through) for payload in payloads]
        maps = np.concatenate([crossing.h.numpy() for crossing in crossings])
        return Evidence(np.concatenate([crossing.partial.numpy() for crossing in crossings]), maps)


def _held_to_deeper(results: dict[Cut, CutQuality]) -> dict[Cut, CutQuality]:
    """The results with the risk of every plain map raised to the largest one of what can be computed from it."""
    held = dict(results)
    floor = 0.0
    for block in sorted({cut.block for cut in results}, reverse=True):
        here = [cut for cut in results if cut.block == block and not math.isnan(results[cut].privacy_risk)]
        floor = max([floor, *(results[cut].privacy_risk for cut in here)])
        for cut in here:
            if cut.encoding in (Encoding.FP32, Encoding.FP16, Encoding.INT8):
                held[cut] = results[cut]._replace(privacy_risk=floor)
    return held


def sure_windows(early: Floats, block: int, uncertainty: Callable[[Floats], float]) -> NDArray[np.bool_]:
    """Which of consecutive early embeddings [n, d] after `block` the exit rule uses, once it is warmed up with them."""
    rule = ExitRule()
    values = [uncertainty(z) for z in early]
    for _ in range(-(-rule.settings.warm_up_windows // len(values))):  # warm, however few there are
        for value in values:
            rule.confident(block, value)
    return np.array([rule.confident(block, value) for value in values])


def _some(count: int, wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """At most `wanted` of `count` rows, in order."""
    return np.sort(rng.permutation(count)[:wanted])


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else math.nan
