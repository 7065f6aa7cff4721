"""The probe table: known vectors give known accuracies; held-out parts share no source."""

from __future__ import annotations

import numpy as np
import torch

from streamsplit.audio.synth import LABELS
from streamsplit.evaluation import study
from streamsplit.evaluation.study import Item, ProbeSet


class Telling(torch.nn.Module):
    """An 'encoder' that knows the label, which is written into the first band."""

    def forward(self, x):
        return torch.nn.functional.one_hot(x[:, 0, 0].long(), 4).float()


class Blind(torch.nn.Module):
    """An 'encoder' that knows nothing: noise."""

    def forward(self, x):
        return torch.nn.functional.normalize(torch.randn(len(x), 4), dim=1)


def items(count: int, rng: np.random.Generator) -> list[Item]:
    made = []
    for number in range(count):
        windows = rng.normal(0, 1, (3, 128, 100)).astype(np.float32)
        windows[:, 0, 0] = number % 4
        made.append(Item(windows, f"label{number % 4}", str(number)))
    return made


def test_an_encoder_that_knows_the_label_is_right_and_one_that_knows_nothing_is_at_chance():
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    data = ProbeSet(items(40, rng), items(80, rng), "noise")
    rows, vectors = study.compare(data, [("blind", "before", Blind()), ("telling", "after", Telling())])
    by_name = {row["name"]: row for row in rows}
    assert [row["kind"] for row in rows] == ["baseline", "baseline", "before", "after"]
    assert by_name["telling"]["accuracy"] == by_name["telling"]["clip_accuracy"] == 1.0
    assert by_name["telling"]["precision_at_10"] == 1.0
    assert abs(by_name["blind"]["accuracy"] - 0.25) < 0.12
    assert vectors["telling"].shape == (240, 4) and by_name["log-mel mean + std"]["dim"] == 256


def test_synthetic_probes_hold_every_label_equally_and_repeat():
    first, again = study.synthetic_probe(27, seed=3), study.synthetic_probe(27, seed=3)
    assert np.array_equal(first.test[5].windows, again.test[5].windows)
    assert not np.array_equal(first.test[5].windows, first.train[5].windows)
    assert sorted(item.label for item in first.test) == sorted(LABELS * 3)


def test_folds_of_a_folder_never_share_a_source(data_dir, tmp_path):
    for label in ("chainsaw", "dog_bark", "person_sneeze", "rain"):  # of ten, each with all of its recordings
        (tmp_path / label).symlink_to(data_dir / "esc10" / label)
    probe, train, test = study.folder_probe(tmp_path)
    assert {clip.fold for clip in test} == {4} and {clip.fold for clip in train} == {1, 2, 3}
    assert not {item.source for item in probe.train} & {item.source for item in probe.test}
