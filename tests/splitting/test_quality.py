"""Quality per cut: what a probe says of the embedding, the theorem's epsilon, what of the sound crosses."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from streamsplit.audio.synth import Soundscape
from streamsplit.audio.windows import WindowStream
from streamsplit.encoders.bottleneck import fit_bottlenecks
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.encoders.projection import fit_exits, fit_projection
from streamsplit.errors import CutError
from streamsplit.splitting.cut import Cut
from streamsplit.splitting.device import device_profile
from streamsplit.splitting.paths import pairs_of
from streamsplit.splitting.profile import profile_encoder
from streamsplit.splitting.quality import Material, measure_quality, quality_of, sure_windows
from streamsplit.splitting.table import table_from_dict

CUTS = [
    Cut.parse(text)
    for text in (
        "0:pcm16", "0:opus24", "0:logmel-int8", "2:int8", "2:bottleneck-int8", "4:exit-fp16", "10:int8",
        "13:embedding-fp16", "13:none",
    )
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def quick_decoders() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamsplit.splitting.quality.DECODER_STEPS", 8)
        yield


@pytest.fixture(scope="module")
def material() -> Material:
    train = np.stack([window.features for window in WindowStream().push(Soundscape(1).read(16_000 * 40))])
    pairs = pairs_of(WindowStream().push(Soundscape(2, mean_segment_s=3.0).read(16_000 * 30)))
    return Material("test", train, pairs, ["?"] * len(pairs), [str(i // 5) for i in range(len(pairs))])


@pytest.fixture(scope="module")
def encoder(material):
    made = make_encoder(EncoderSettings(width=0.25, embedding_dim=32))
    fit_projection(made, material.train)
    fit_exits(made, material.train)
    fit_bottlenecks(made, material.train)
    return made.requires_grad_(False)


@pytest.fixture(scope="module")
def full(encoder, material) -> np.ndarray:
    with torch.no_grad():
        return np.stack([encoder(torch.from_numpy(window.features)[None])[0].numpy() for _, window in material.pairs])


def doubt(z: np.ndarray) -> float:
    return float(-z[0])


def says(z: np.ndarray) -> list[str]:
    return ["left" if value < 0 else "right" for value in np.asarray(z)[:, 1]]


@pytest.fixture(scope="module")
def quality(encoder, material, full):
    labelled = material._replace(labels=says(full))
    with torch.inference_mode():
        return measure_quality(encoder, labelled, CUTS, probe=says, uncertainty=doubt, privacy_windows=24)


def test_epsilon_and_agreement_are_of_the_same_embeddings(quality):
    for cut in CUTS:
        found = quality.cuts[cut]
        assert found.epsilon**2 == pytest.approx(2 * (1 - found.agreement), abs=2e-4)  # both of norm 1
        assert quality.meta["epsilon"][str(cut)] == round(found.epsilon, 5)
    assert quality.cuts[Cut.parse("13:none")].epsilon == 0.0


def test_accuracy_is_the_share_of_windows_that_the_probe_still_names_as_on_the_full_path(
    quality, encoder, material, full
):
    assert quality.meta["full_accuracy"] == 1.0 and quality.meta["full_accuracy_standard_error"] == 0.0
    assert quality.cuts[Cut.parse("13:none")].accuracy == 1.0
    with torch.no_grad():
        narrowed = []
        for _, window in material.pairs:
            crossing = encoder.forward_to(torch.from_numpy(window.features)[None], 2)
            seen = crossing._replace(h=encoder.bottlenecks[2](crossing.h))
            narrowed.append(encoder.forward_from(seen, 2)[0].numpy())
    same = np.mean([a == b for a, b in zip(says(np.stack(narrowed)), says(full), strict=True)])
    assert quality.cuts[Cut.parse("2:bottleneck-int8")].accuracy == pytest.approx(same, abs=0.04)  # int8 besides
    assert quality.cuts[Cut.parse("2:bottleneck-int8")].accuracy <= quality.cuts[Cut.parse("2:int8")].accuracy


def test_the_standard_error_is_over_recordings_not_over_their_windows(encoder, material):
    few = material._replace(pairs=material.pairs[:40])
    labels = ["left"] * 20 + ["right"] * 20

    def error(clips: list[str]) -> float:
        with torch.inference_mode():
            made = measure_quality(
                encoder, few._replace(labels=labels, clips=clips), [Cut.parse("13:none")],
                probe=lambda z: ["left"] * len(z),
            )  # fmt: skip
        return made.meta["full_accuracy_standard_error"]

    assert error([str(i) for i in range(40)]) == pytest.approx(0.5 / math.sqrt(39), abs=1e-4)
    # two recordings of twenty windows each, one all right and one all wrong: as good as two draws
    assert error(["a"] * 20 + ["b"] * 20) == pytest.approx(0.5, abs=1e-4)


def test_exits_are_mixed_as_the_rule_says_and_told_apart_in_the_meta(quality, encoder, material, full):
    with torch.no_grad():
        inputs = [torch.from_numpy(window.features)[None] for _, window in material.pairs]
        early = np.stack([encoder.exit_embedding(encoder.forward_to(x, 4), 4)[0].numpy() for x in inputs])
    sure = sure_windows(early, 4, doubt)
    about = quality.meta["exits"]["4"]
    assert about["share"] == pytest.approx(sure.mean(), abs=1e-3) and quality.exit_shares[4] == sure.mean()
    cosine = (early * full).sum(1)
    assert about["agreement_where_sure"] == pytest.approx(cosine[sure].mean(), abs=1e-3)
    assert about["agreement_everywhere"] == pytest.approx(cosine.mean(), abs=1e-3)
    expected = np.where(sure, cosine, 1.0).mean()
    assert quality.cuts[Cut.parse("4:exit-fp16")].agreement == pytest.approx(expected, abs=1e-3)


def test_the_sound_itself_gives_all_away_nothing_gives_nothing_and_deeper_cuts_no_more(quality):
    risk = {str(cut): quality.cuts[cut].privacy_risk for cut in CUTS}
    assert risk["0:pcm16"] > 0.999 and risk["0:logmel-int8"] > 0.99 and 0.8 < risk["0:opus24"] < risk["0:pcm16"]
    assert risk["13:none"] == 0.0
    assert risk["0:pcm16"] > risk["2:int8"] >= risk["10:int8"] >= risk["13:embedding-fp16"] >= 0.0
    assert risk["2:int8"] >= risk["2:bottleneck-int8"]


def test_without_probe_and_decoders_there_is_agreement_alone(encoder, material):
    few = material._replace(pairs=material.pairs[:5], labels=material.labels[:5], clips=material.clips[:5])
    with torch.inference_mode():
        made = measure_quality(encoder, few, CUTS[:1])
    found = made.cuts[CUTS[0]]
    assert math.isnan(found.accuracy) and math.isnan(found.privacy_risk) and found.agreement > 0.99
    with pytest.raises(CutError, match="no held-out windows"):
        measure_quality(encoder, material._replace(pairs=[]), CUTS)


def test_quality_outlives_its_costs(encoder, material, full, monkeypatch):
    monkeypatch.setattr("streamsplit.splitting.quality.DECODER_STEPS", 2)
    windows = [window for pair in material.pairs[:3] for window in pair][::2]
    few = material._replace(pairs=material.pairs[:6], clips=material.clips[:6], labels=says(full[:6]))
    first = profile_encoder(
        encoder, device_profile("host"), windows, 2, material=few, probe=lambda _: says, uncertainty=doubt,
        privacy_windows=6,
    )  # fmt: skip
    kept = quality_of(table_from_dict(first.as_dict()))
    again = profile_encoder(encoder, device_profile("pi4"), windows, 2, uncertainty=doubt, quality=kept)
    assert again.meta["quality"] == first.meta["quality"]
    for old, new in zip(first.rows, again.rows, strict=True):
        kept_fields = ("agreement", "accuracy", "privacy_risk", "payload_bytes", "fetch_bytes")
        assert [getattr(new, name) for name in kept_fields] == pytest.approx(
            [getattr(old, name) for name in kept_fields], abs=1e-6
        )
        assert new.edge_ms > old.edge_ms
    with pytest.raises(CutError, match="without quality"):
        quality_of(first._replace(meta={}))
