"""The compute worker: equal cuts of many devices complete together, and a bad window costs only itself."""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from server_builders import unit

from streamsplit.codec.features import pack_features
from streamsplit.encoders.bottleneck import fit_bottlenecks
from streamsplit.encoders.crossing import pack_crossing, unpack_crossing
from streamsplit.encoders.embedding_codec import pack_embedding
from streamsplit.encoders.factory import EncoderSettings, make_encoder
from streamsplit.learning.mixture import GaussianMixture
from streamsplit.server.compute import BatchReport, ComputeWorker
from streamsplit.server.jobs import DeviceStream, Done, Job, Sample
from streamsplit.server.labels import LabelledPrototypes
from streamsplit.server.models import EncoderShelf
from streamsplit.server.records import Commit
from streamsplit.server.settings import ComputeSettings, SignalSettings
from streamsplit.weights.revision import Weights, encoder_weights, revision_of, revision_prefix
from streamsplit.wire.media import Encoding, MediaHeader, pack_media
from streamsplit.wire.types import FrameType

ENCODER = make_encoder()
fit_bottlenecks(
    ENCODER, (np.random.default_rng(99).standard_normal((8, 128, 100)) * 2 - 7).astype(np.float32)
)  # as features() below
WEIGHTS = encoder_weights(ENCODER)
PREFIX = revision_prefix(revision_of(WEIGHTS))
OLDER: Weights = {name: array + np.float32(0.01) for name, array in WEIGHTS.items()}


class Bench:
    """A worker whose output is kept."""

    def __init__(self, folder: Path) -> None:
        shelf = EncoderShelf(EncoderSettings(), "cpu", 2, self._older)
        shelf.adopt(revision_of(WEIGHTS), 1, WEIGHTS)
        self.done: list[Done] = []
        self.commits: list[Commit] = []
        self.samples: list[Sample] = []
        self.batches: list[BatchReport] = []
        self._arrived = threading.Semaphore(0)
        self.worker = ComputeWorker(
            ComputeSettings(wait_ms=1.0),
            shelf,
            GaussianMixture(seed=1),
            LabelledPrototypes(folder / "labels.json", 128),
            window_frames=100,
            device="cpu",
            deliver=self._deliver,
            learn=self.samples.extend,
            report=self.batches.append,
        )
        self.worker.start()

    @staticmethod
    def _older(prefix: int) -> tuple[str, int, Weights] | None:
        revision = revision_of(OLDER)
        return (revision, 0, OLDER) if prefix == revision_prefix(revision) else None

    def _deliver(self, commits: list[Commit], done: list[Done]) -> None:
        self.commits += commits
        self.done += done
        for _ in done:
            self._arrived.release()

    def run(self, jobs: list[Job]) -> dict[str, Done]:
        """Hands in everything while the worker is busy, as a burst would; returns answers by device."""
        gate = threading.Event()
        self.worker.call(gate.wait)
        for job in jobs:
            self.worker.submit(job)
        gate.set()
        for _ in jobs:
            assert self._arrived.acquire(timeout=20.0)
        return {item.record.device: item for item in self.done[-len(jobs) :]}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.worker.stop()


def job(device: str, block: int, encoding: Encoding, payload: bytes, *, prefix: int = PREFIX, gmm: bool = False) -> Job:
    header = MediaHeader(0, prefix, block, encoding, 0, 0, math.nan, 100 if block == 0 else 0, 0.0, 0)
    stream = DeviceStream.start(device, 1, 0, frozenset(), None, SignalSettings())
    data = pack_media(header, payload)
    return Job(stream, FrameType.FEATURES, 1, 0, time.monotonic(), 0, data, len(data), False, gmm)


def features(seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((128, 100)) * 2 - 7).astype(np.float32)


def activation(seed: int, block: int, encoding: Encoding = Encoding.FP32) -> bytes:
    with torch.inference_mode():
        return pack_crossing(ENCODER.forward_to(torch.from_numpy(features(seed))[None], block), encoding)


def test_equal_cuts_of_many_devices_are_completed_together_and_each_gets_its_own_answer(bench: Bench) -> None:
    jobs = [job(f"a{n}", 6, Encoding.FP32, activation(n, 6)) for n in range(5)]
    jobs += [job(f"b{n}", 9, Encoding.FP32, activation(n, 9)) for n in range(3)]
    random.Random(0).shuffle(jobs)
    answers = bench.run(jobs)
    assert sorted((batch.block, batch.windows) for batch in bench.batches) == [(6, 5), (9, 3)]
    for name, item in answers.items():
        with torch.inference_mode():
            expected = ENCODER(torch.from_numpy(features(int(name[1:])))[None])[0].numpy()
        got = np.frombuffer(item.record.embedding or b"", "<f2").astype(np.float32)
        np.testing.assert_allclose(got, expected, atol=1e-3)


def test_windows_of_different_resolution_or_revision_are_never_mixed(bench: Bench) -> None:
    older = revision_prefix(revision_of(OLDER))
    reduced = job("reduced", 0, Encoding.LOGMEL_FP16, pack_features(features(1)[:64, :50], Encoding.LOGMEL_FP16))
    reduced = reduced._replace(payload=reduced.payload[:10] + b"\x01" + reduced.payload[11:])
    answers = bench.run([
        job("full", 0, Encoding.LOGMEL_FP16, pack_features(features(1), Encoding.LOGMEL_FP16)), reduced,
        job("now", 6, Encoding.FP32, activation(1, 6)), job("older", 6, Encoding.FP32, activation(1, 6), prefix=older),
    ])  # fmt: skip
    assert [item.record.error for item in answers.values()] == [""] * 4
    assert len(bench.batches) == 4
    assert answers["older"].record.revision == revision_of(OLDER)
    assert answers["older"].record.embedding != answers["now"].record.embedding


def test_a_bad_window_in_a_batch_costs_only_itself(bench: Bench) -> None:
    answers = bench.run([
        job("good", 6, Encoding.FP16, activation(1, 6, Encoding.FP16)),
        job("bad", 6, Encoding.FP16, b"\x11\x00garbage"),
        job("unknown", 6, Encoding.FP16, activation(2, 6, Encoding.FP16), prefix=123),
        job("also-good", 6, Encoding.FP16, activation(3, 6, Encoding.FP16)),
    ])  # fmt: skip
    assert {name: item.record.error for name, item in answers.items()} == {
        "good": "", "bad": "bad_media", "unknown": "unknown_revision", "also-good": "",
    }  # fmt: skip
    assert len(bench.commits) == 4 and len(bench.samples) == 2


def test_the_mark_of_a_new_stretch_reaches_the_refiner_from_every_cut(bench: Bench) -> None:
    whole = pack_features(features(1), Encoding.LOGMEL_FP16)
    cuts = {"input": (0, Encoding.LOGMEL_FP16, whole), "middle": (6, Encoding.FP32, activation(1, 6))}
    z = np.eye(ENCODER.embedding_dim, dtype=np.float32)[0]
    cuts["end"] = (ENCODER.num_blocks, Encoding.EMBEDDING_FP16, pack_embedding(z, Encoding.EMBEDDING_FP16))
    jobs = []
    for name, cut in cuts.items():
        plain = job(name, *cut)
        marked = job(f"{name} starts", *cut)
        jobs += [plain, marked._replace(payload=marked.payload[:11] + b"\x01" + marked.payload[12:])]
    answers = bench.run(jobs)
    assert {item.record.error for item in answers.values()} == {""}
    until = time.monotonic() + 10
    while len(bench.samples) < len(jobs) and time.monotonic() < until:
        time.sleep(0.01)
    assert {sample.device: sample.starts for sample in bench.samples} == {
        name + mark: bool(mark) for name in cuts for mark in ("", " starts")
    }


def test_the_refiner_gets_the_completed_embedding_of_every_cut(bench: Bench) -> None:
    whole = pack_features(features(1), Encoding.LOGMEL_FP16)
    answers = bench.run([
        job("input", 0, Encoding.LOGMEL_FP16, whole), job("middle", 6, Encoding.FP32, activation(1, 6)),
        job("end", 13, Encoding.EMBEDDING_FP16, pack_embedding(unit(1), Encoding.EMBEDDING_FP16)),
    ])  # fmt: skip
    until = time.monotonic() + 10
    while len(bench.samples) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    for sample in bench.samples:
        stored = np.frombuffer(answers[sample.device].record.embedding or b"", "<f2").astype(np.float32)
        np.testing.assert_allclose(sample.embedding, stored, atol=1e-3)
    assert {sample.device for sample in bench.samples} == {"input", "middle", "end"}


def test_narrowed_activations_are_completed_through_the_bottleneck_of_their_revision(bench: Bench) -> None:
    through = ENCODER.bottlenecks[5]
    with torch.inference_mode():
        crossing = ENCODER.forward_to(torch.from_numpy(features(1))[None], 5)
        payload = pack_crossing(crossing, Encoding.BOTTLENECK_INT8, through)
        expected = ENCODER.forward_from(unpack_crossing(payload, through), 5)[0].numpy()
        exact = ENCODER.forward_from(crossing, 5)[0].numpy()
    assert expected @ exact > 0.8
    answers = bench.run([
        job("narrowed", 5, Encoding.BOTTLENECK_INT8, payload), job("plain", 5, Encoding.INT8, activation(1, 5)[:0]),
        job("none there", 6, Encoding.BOTTLENECK_INT8, payload), job("said plain", 5, Encoding.INT8, payload),
    ])  # fmt: skip
    got = np.frombuffer(answers["narrowed"].record.embedding or b"", "<f2").astype(np.float32)
    np.testing.assert_allclose(got, expected, atol=1e-3)
    assert {name: item.record.error for name, item in answers.items()} == {
        "narrowed": "", "plain": "bad_media", "none there": "bad_media", "said plain": "bad_media",
    }  # fmt: skip
    assert "no bottleneck at block 6" in answers["none there"].record.detail


def test_an_early_exit_is_taken_as_it_came(bench: Bench) -> None:
    with torch.inference_mode():
        early = ENCODER.exit_embedding(ENCODER.forward_to(torch.from_numpy(features(1))[None], 4), 4)[0].numpy()
    payload = pack_embedding(early, Encoding.EXIT_FP16)
    longer = pack_embedding(2 * early, Encoding.EXIT_FP16)
    answers = bench.run([
        job("exit", 4, Encoding.EXIT_FP16, payload), job("long", 4, Encoding.EXIT_FP16, longer),
        job("exit at the end", 13, Encoding.EMBEDDING_FP16, payload),
    ])  # fmt: skip
    got = np.frombuffer(answers["exit"].record.embedding or b"", "<f2").astype(np.float32)
    np.testing.assert_allclose(got, early, atol=1e-3)
    assert (answers["exit"].record.block, answers["exit"].record.encoding) == (4, Encoding.EXIT_FP16)
    assert answers["long"].record.error == answers["exit at the end"].record.error == "bad_media"


def test_weights_that_overflow_are_a_rejected_window_and_not_a_nan_answer(bench: Bench) -> None:
    huge = np.full((128, 100), 3e4, np.float32)
    with torch.inference_mode():
        crossing = ENCODER.forward_to(torch.from_numpy(huge)[None], 3)
    crossing = crossing._replace(h=torch.full_like(crossing.h, 1e38))
    answers = bench.run([job("huge", 3, Encoding.FP32, pack_crossing(crossing, Encoding.FP32))])
    assert answers["huge"].record.error == "nan_features"


def test_uncertainty_comes_from_the_mixture_and_old_spaces_stay_out_of_it(bench: Bench) -> None:
    for n in range(60):
        z = unit(n % 3)
        bench.run([job("pi", 13, Encoding.EMBEDDING_FP16, pack_embedding(z, Encoding.EMBEDDING_FP16))])
    seen = bench.worker.mixture.observations
    older = revision_prefix(revision_of(OLDER))
    embedding = pack_embedding(unit(0), Encoding.EMBEDDING_FP16)
    new = bench.run([job("new", 13, Encoding.EMBEDDING_FP16, embedding, gmm=True)])["new"]
    assert 0.0 <= new.record.uncertainty <= math.log(64) and new.record.cluster >= 0
    assert new.gmm is not None and len(new.gmm.data) == 2 * 64 * 257
    old = bench.run([job("old", 13, Encoding.EMBEDDING_FP16, embedding, prefix=older)])["old"]
    assert math.isnan(old.record.uncertainty) and old.record.cluster == -1 and old.record.error == ""
    assert bench.worker.mixture.observations == seen + 1


def test_a_call_that_fails_reaches_its_caller_and_the_worker_goes_on(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        bench.worker.call(lambda: 1 / 0).result(5.0)
    assert bench.worker.call(lambda: 7).result(5.0) == 7


def test_the_durable_prefix_follows_completions_in_any_order() -> None:
    rng = random.Random(4)
    for _ in range(200):
        order = list(range(1, 30))
        rng.shuffle(order)
        stream = DeviceStream.start("pi", 1, 0, frozenset(), None, SignalSettings())
        stream.received = 29
        seen: set[int] = set()
        for sequence in order:
            stream.commit(sequence)
            seen.add(sequence)
            expected = next(n for n in range(31) if n + 1 not in seen)
            assert stream.through == expected
            assert stream.pending is (expected < 29)
            assert all(stream.holds(s) is (s in seen) for s in range(1, 30))


def test_a_call_that_was_given_up_does_not_end_the_worker(bench: Bench) -> None:
    gate = threading.Event()
    bench.worker.call(gate.wait)
    given_up = bench.worker.call(lambda: 1)
    assert given_up.cancel()
    gate.set()
    assert bench.worker.call(lambda: 2).result(5.0) == 2
