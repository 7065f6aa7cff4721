"""What a device learned is merged once: after the server has it, the next revision brings it and nothing else does."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamsplit.edge.model import EncoderModel  # noqa: E402
from streamsplit.edge.settings import EdgeSettings  # noqa: E402
from streamsplit.refinement.federated import LocalMerge  # noqa: E402
from streamsplit.weights.revision import Weights, encoder_weights, revision_of  # noqa: E402


def learned_model() -> EncoderModel:
    training = {"warm_start_windows": 16, "buffer_windows": 64, "batch_windows": 4, "accumulate": 1}
    model = EncoderModel(EdgeSettings.from_mapping({"training": training, "encoder": {"width": 0.25}}))
    rng = np.random.default_rng(0)
    for index in range(24):
        features = (-7 + rng.normal(0, 2, (128, 1)) + rng.normal(0, 1, (128, 100))).astype(np.float32)
        model.remember(features, None, index, continuous=True)
    model.learn(0.0)
    return model


def distance(a: Weights, b: Weights) -> float:
    return float(np.sqrt(sum(np.square(a[name] - b[name], dtype=np.float64).sum() for name in a)))


def merged(model: EncoderModel) -> tuple[Weights, str]:
    """The next revision of a server that learned nothing itself, and the device's offer."""
    packed, offer, _, samples = model.local_learning()
    base = model.base_weights()
    merge = LocalMerge(np.inf)
    merge.add("pi", base, {name: packed.result[name] - base[name] for name in base}, samples, 0)
    return merge.apply(base, base, 0).weights, offer


def test_learning_that_the_server_took_is_not_put_on_top_of_its_revision() -> None:
    model = learned_model()
    new, offer = merged(model)
    step = distance(new, model.base_weights())
    assert step > 0
    model.learning_taken(offer)
    model.adopt(new, revision_of(new), breaks_space=False)
    assert distance(encoder_weights(model.learner.query), new) < 0.05 * step  # the rounding of the int8 difference


def test_what_was_learned_after_the_upload_stays_on_top() -> None:
    model = learned_model()
    new, offer = merged(model)
    sent = encoder_weights(model.learner.query)
    model.learning_taken(offer)
    model.learn(0.0)
    later = distance(encoder_weights(model.learner.query), sent)
    model.adopt(new, revision_of(new), breaks_space=False)
    assert distance(encoder_weights(model.learner.query), new) == pytest.approx(later, rel=0.1)


def test_learning_that_the_server_has_not_confirmed_stays_on_top() -> None:
    model = learned_model()
    new, _ = merged(model)
    step = distance(new, model.base_weights())
    model.learning_taken("ab" * 32)  # another offer
    model.adopt(new, revision_of(new), breaks_space=False)
    assert distance(encoder_weights(model.learner.query), new) == pytest.approx(step, rel=0.05)


def test_the_same_learning_does_not_move_the_server_twice() -> None:
    """Oracle: one device, no other learning: revisions stay where the first merge put them."""
    model = learned_model()
    first, offer = merged(model)
    step = distance(first, model.base_weights())
    model.learning_taken(offer)
    model.adopt(first, revision_of(first), breaks_space=False)
    difference = model.learner.local_difference()
    moved = distance(difference, {name: np.zeros_like(array) for name, array in difference.items()})
    assert moved < 0.05 * step
