import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, silhouette_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from streamsplit.errors import ConfigError
from streamsplit.evaluation.probe import REGULARISATION, cross_validated_probe, linear_probe
from streamsplit.evaluation.retrieval import possible_precision, precision_at_k, silhouette


def clusters(n=120, d=8, classes=4, spread=0.3, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return np.eye(classes, d)[labels] + rng.normal(0, spread, (n, d)), labels


def test_the_probe_equals_sklearn_at_the_regularisation_it_chose():
    x, y = make_classification(300, 12, n_informative=6, n_classes=3, random_state=0)
    result = linear_probe(x[:200], y[:200], x[200:], y[200:])
    scale = StandardScaler().fit(x[:200])
    model = LogisticRegression(C=result.regularisation, max_iter=2000, tol=1e-3).fit(scale.transform(x[:200]), y[:200])
    predicted = model.predict(scale.transform(x[200:]))
    assert result.accuracy == np.mean(predicted == y[200:])
    assert np.array_equal(result.confusion, confusion_matrix([str(v) for v in y[200:]], result.predictions))
    assert result.standard_error == pytest.approx(np.sqrt(result.accuracy * (1 - result.accuracy) / 100))


def test_separable_data_is_solved_and_random_labels_are_not():
    x, y = clusters()
    assert linear_probe(x[:80], y[:80], x[80:], y[80:]).accuracy > 0.9
    noise = np.random.default_rng(1).normal(size=(400, 8))
    labels = np.random.default_rng(2).integers(4, size=400)
    assert cross_validated_probe(noise, labels).accuracy == pytest.approx(0.25, abs=0.08)


def test_the_test_part_has_no_say_in_standardisation_and_regularisation():
    x, y = clusters(spread=1.0)
    result = linear_probe(x[:80], y[:80], x[80:], y[80:])
    for shift, rows in ((1000.0, slice(80, 110)), (-5.0, slice(81, 120))):
        other = x[rows] * 7 + shift
        again = linear_probe(x[:80], y[:80], np.concatenate([x[80:], other]), np.concatenate([y[80:], y[rows]]))
        assert again.regularisation == result.regularisation
        assert np.array_equal(again.predictions[:40], result.predictions)


def test_regularisation_is_chosen_across_groups_not_within_them():
    # Every group has its own signature, which says the label on windows of the same group only.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 6)
    labels = groups % 2
    signature = rng.normal(0, 3, (40, 60))[groups]
    x = signature + rng.normal(0, 0.1, (240, 60))
    x[:, 0] = labels + rng.normal(0, 1.5, 40)[groups]
    blind = linear_probe(x, labels, x, labels).regularisation
    fair = linear_probe(x, labels, x, labels, groups=groups)
    assert cross_validated_probe(x, labels).accuracy > 0.95  # the leak that groups close
    assert cross_validated_probe(x, labels, groups=groups).accuracy < 0.8
    assert fair.regularisation in REGULARISATION and blind in REGULARISATION


def test_a_label_unseen_in_training_counts_as_wrong():
    x, y = clusters()
    result = linear_probe(x[:80], y[:80], x[80:], ["other"] * 40)
    assert result.accuracy == 0.0 and "other" in result.classes


@pytest.mark.parametrize(
    ("vectors", "labels", "reason"),
    [
        (np.zeros((4, 2)), [0, 0, 0, 0], "1 class"),
        (np.full((4, 2), np.nan), [0, 1, 0, 1], "NaN"),
        (np.zeros((4, 2)), [0, 1], "4, 2"),
        (np.zeros((0, 2)), [], "n >= 1"),
    ],
)
def test_bad_input_is_refused(vectors, labels, reason):
    with pytest.raises(ConfigError, match=reason):
        linear_probe(vectors, labels, np.zeros((2, 2)), [0, 1])


def test_a_class_too_small_for_the_folds_is_named():
    with pytest.raises(ConfigError, match="smallest class"):
        cross_validated_probe(np.zeros((9, 2)), [0] * 8 + [1])


def test_precision_at_k_equals_sklearns_neighbours():
    x, y = clusters(spread=0.8)
    index = NearestNeighbors(n_neighbors=11, metric="cosine").fit(x).kneighbors(x, return_distance=False)[:, 1:]
    assert precision_at_k(x, y, 10) == pytest.approx(float(np.mean(y[index] == y[:, None])))


def test_windows_of_the_same_recording_are_no_answers():
    x = np.repeat(np.eye(4), 3, axis=0) + np.random.default_rng(0).normal(0, 0.01, (12, 4))
    labels, groups = np.repeat([0, 0, 1, 1], 3), np.repeat(np.arange(4), 3)
    assert precision_at_k(x, labels, 2) == 1.0
    fair = precision_at_k(x, labels, 2, groups=groups)
    slow = []
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    for i in range(12):
        others = [j for j in range(12) if groups[j] != groups[i]]
        best = sorted(others, key=lambda j: -(unit[i] @ unit[j]))[:2]
        slow.append(np.mean([labels[j] == labels[i] for j in best]))
    assert fair == pytest.approx(np.mean(slow)) and fair < 1.0


def test_queries_with_few_answers_are_judged_on_those():
    assert precision_at_k(np.eye(3), [0, 0, 0], 10) == 1.0
    with pytest.raises(ConfigError, match="outside its own group"):
        precision_at_k(np.eye(3), [0, 0, 1], 2, groups=[0, 0, 0])


def test_no_search_beats_what_is_possible_and_a_perfect_one_reaches_it():
    labels, recordings = [0, 0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 3, 4, 4]
    perfect = np.eye(2)[labels]
    # three right answers of k = 3 for one of class 0, two for the two of recording 0, and so on: by hand
    assert possible_precision(labels, 3, groups=recordings) == pytest.approx((2 + 2 + 3 + 3 + 2 + 1 + 1) / (3 * 7))
    assert precision_at_k(perfect, labels, 3, groups=recordings) == pytest.approx(14 / 21)
    blurred = perfect + np.random.default_rng(0).normal(0, 2.0, perfect.shape)
    assert precision_at_k(blurred, labels, 3, groups=recordings) < 14 / 21
    with pytest.raises(ConfigError, match="outside its own group"):
        possible_precision([0, 1], 3, groups=[0, 0])


def test_the_silhouette_equals_sklearns_and_needs_two_classes():
    x, y = clusters()
    assert silhouette(x, y) == pytest.approx(silhouette_score(x, y, metric="cosine"))
    with pytest.raises(ConfigError, match="at least 2"):
        silhouette(x, np.zeros(len(x)))


def test_a_class_of_one_group_is_refused_by_its_name() -> None:
    x, labels = np.random.default_rng(0).standard_normal((20, 4)), ["a", "b"] * 10
    with pytest.raises(ConfigError, match="got one group in class 'a', expected every class in two groups or more"):
        linear_probe(x, labels, x, labels, groups=labels)
