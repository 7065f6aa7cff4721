import csv
import json
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from streamsplit.errors import ConfigError, StreamSplitError
from streamsplit.evaluation.geometry import alignment, uniformity
from streamsplit.evaluation.metrics import MetricsCollector, evaluate_embeddings
from streamsplit.evaluation.probe import cross_validated_probe
from streamsplit.evaluation.retrieval import precision_at_k, silhouette
from streamsplit.splitting.device import DEVICES


def clusters(n=150, d=16, classes=3, spread=0.2, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    return np.eye(classes, d)[labels] + rng.normal(0, spread, (n, d)), labels


def burn(seconds):
    end = time.process_time() + seconds
    while time.process_time() < end:
        sum(range(1000))


def test_the_seeds_example_runs_and_random_embeddings_score_at_chance():
    embeddings = torch.randn(1000, 128, generator=torch.Generator().manual_seed(0))
    labels = np.random.default_rng(0).integers(0, 10, 1000)
    results = evaluate_embeddings(embeddings, labels, device="cpu", include_visualization=False)
    assert results["classification_accuracy"].value == pytest.approx(0.1, abs=0.04)
    assert results["precision_at_10"].value == pytest.approx(0.1, abs=0.02)
    assert abs(results["embedding_separability"].value) < 0.02
    assert 100 < results["effective_rank"].value <= 128


def test_figures_are_those_of_the_probe_and_retrieval():
    x, y = clusters()
    results = evaluate_embeddings(x, y, include_visualization=False)
    assert results["classification_accuracy"].value == cross_validated_probe(x, y).accuracy > 0.95
    assert results["precision_at_10"].value == precision_at_k(x, y, 10)
    assert results["embedding_separability"].value == silhouette(x, y)
    assert results["classification_accuracy"].standard_error < 0.03
    assert "visualization" not in results


def test_alignment_is_within_recordings_where_they_are_known_and_within_labels_where_not():
    x, y = clusters(n=60)
    recordings = np.arange(60) // 3
    known = evaluate_embeddings(x, y, include_visualization=False, groups=recordings)
    plain = evaluate_embeddings(x, y, include_visualization=False)
    single = evaluate_embeddings(x, y, include_visualization=False, groups=np.arange(60))
    assert known["alignment"].value == alignment(x, recordings) and "group" in known["alignment"].method
    assert plain["alignment"].value == alignment(x, y) == single["alignment"].value
    assert "label" in single["alignment"].method
    assert plain["uniformity"].value == uniformity(x)


def test_the_confusion_matrix_is_sklearns_of_the_probes_predictions():
    x, y = clusters(spread=0.6)
    results = evaluate_embeddings(x, y, include_visualization=False)
    predicted = cross_validated_probe(x, y).predictions
    matrix = results["confusion_matrix"].value
    assert np.array_equal(matrix, confusion_matrix(y.astype(str), predicted))
    assert results["confusion_classes"].value == ("0", "1", "2")
    assert matrix.trace() / matrix.sum() == results["classification_accuracy"].value < 1.0


def test_the_picture_keeps_clusters_apart():
    x, y = clusters()
    results = evaluate_embeddings(torch.from_numpy(x), y.tolist())
    points = results["visualization"].value
    assert points.shape == (150, 2) and np.isfinite(points).all()
    assert precision_at_k(points - points.mean(axis=0), y, 5) > 0.8
    assert results["visualization_rows"].value.tolist() == list(range(150))


def test_bad_embeddings_and_devices_are_refused():
    x, y = clusters()
    with pytest.raises(ConfigError, match="'tpu'"):
        evaluate_embeddings(x, y, device="tpu")
    with pytest.raises(ConfigError, match="NaN"):
        evaluate_embeddings(np.full((50, 3), np.nan), np.arange(50) % 2)
    with pytest.raises(ConfigError, match="expected"):
        evaluate_embeddings(x, y[:-1])
    with pytest.raises(ConfigError, match=r"got 1 class \('7'\) among the labels, expected at least 2"):
        evaluate_embeddings(x, np.full(150, 7))
    with pytest.raises(ConfigError, match="got 3 groups for 150 rows"):
        evaluate_embeddings(x, y, groups=[0, 1, 2])


def rss_grew(collector):
    resources = collector.get_comprehensive_report()["resources"]
    return resources["rss_max_mb"] - resources["rss_mean_mb"] > 1


def test_cpu_time_and_memory_are_those_of_this_process():
    collector = MetricsCollector(interval_s=0.02)
    before = time.process_time()
    with collector:
        burn(0.3)
        ballast = np.ones(200_000_000 // 8)
        for _ in range(50):  # the sampling thread may be late on a busy machine
            burn(0.02)
            if rss_grew(collector):
                break
    used = time.process_time() - before
    report = collector.get_comprehensive_report()
    resources = report["resources"]
    assert resources["cpu_time_s"] == pytest.approx(used, abs=0.1)
    assert resources["cpu_share"] == pytest.approx(
        resources["cpu_time_s"] / report["duration_s"] / resources["cores"], rel=1e-6
    )
    assert resources["samples"] > 5
    assert rss_grew(collector) and ballast.nbytes == 200_000_000


def test_energy_is_the_device_tables_model_at_the_measured_load():
    collector = MetricsCollector(profile="pi4")
    with collector:
        burn(0.1)
        collector.record_traffic(uplink_bytes=2_000_000, downlink_bytes=5)
    report = collector.get_comprehensive_report()
    pi4 = DEVICES["pi4"]
    watts = pi4.idle_w + pi4.cpu_w * report["resources"]["cpu_share"] + pi4.radio.connected_w
    assert report["energy"]["total_j"] == pytest.approx(watts * report["duration_s"] + 2 * pi4.radio.joule_per_mb)


def test_what_is_recorded_is_counted_and_what_is_not_is_none():
    collector = MetricsCollector()
    with collector:
        pass
    empty = collector.get_comprehensive_report()
    assert empty["communication"]["uplink_bytes"] is None and empty["latency_ms"] is None and empty["cuts"] == {}
    assert empty["adaptation_ms"] is None and empty["confusion_matrix"] is None
    with collector:
        for latency in range(1, 101):
            collector.record_latency(latency)
        collector.record_traffic(uplink_bytes=100)
        collector.record_traffic(uplink_bytes=50, downlink_bytes=7)
        collector.record_cut("3:int8")
        collector.record_cut("3:int8")
        x, y = clusters()
        collector.record_evaluation(evaluate_embeddings(x, y, include_visualization=False))
    collector.record_adaptation(100)
    collector.record_adaptation(300)
    report = collector.get_comprehensive_report()
    assert report["adaptation_ms"]["p50"] == 200 and report["adaptation_ms"]["count"] == 2
    assert sum(sum(row.values()) for row in report["confusion_matrix"].values()) == 150
    assert report["latency_ms"] == {"p50": 50.5, "p95": pytest.approx(95.05), "p99": pytest.approx(99.01), "count": 100}
    assert report["communication"]["uplink_bytes"] == 150 and report["communication"]["downlink_bytes"] == 7
    assert report["communication"]["uplink_mb_per_h"] == pytest.approx(150e-6 * 3600 / report["duration_s"])
    assert report["cuts"] == {"3:int8": 2} and report["quality"]["precision_at_10"] > 0.9
    assert set(report["quality"]) >= {"alignment", "uniformity"}


def test_the_report_is_available_while_monitoring_and_stands_still_afterwards():
    collector = MetricsCollector()
    collector.start_monitoring()
    with pytest.raises(StreamSplitError, match="stop_monitoring first"):
        collector.start_monitoring()
    assert collector.get_comprehensive_report()["duration_s"] >= 0
    collector.stop_monitoring()
    collector.stop_monitoring()
    first = collector.get_comprehensive_report()
    burn(0.02)
    assert collector.get_comprehensive_report() == first


def test_json_and_csv_hold_the_same_report(tmp_path):
    collector = MetricsCollector(interval_s=0.01)
    with collector:
        burn(0.05)
        collector.record_traffic(uplink_bytes=9)
        x, y = clusters()
        names = np.array(["bird", "car", "dog"])[y]
        collector.record_evaluation(evaluate_embeddings(x, names, include_visualization=False))
    report = collector.get_comprehensive_report()
    saved = json.loads(collector.export_metrics(tmp_path / "results" / "metrics.json", format="json").read_text())
    assert saved.pop("series")[0]["rss_mb"] > 1
    assert saved == report
    with collector.export_metrics(tmp_path / "metrics.csv", format="csv").open(newline="") as file:
        rows = dict(csv.reader(file))
    assert float(rows["resources.cpu_time_s"]) == report["resources"]["cpu_time_s"]
    assert rows["communication.uplink_bytes"] == "9" and rows["latency_ms"] == ""
    assert "series.0.cpu_share" in rows
    assert int(rows["confusion_matrix.bird.bird"]) == report["confusion_matrix"]["bird"]["bird"] > 0
    assert float(rows["quality.uniformity"]) == report["quality"]["uniformity"]


def test_export_and_settings_errors_say_what_to_do(tmp_path):
    collector = MetricsCollector()
    with pytest.raises(StreamSplitError, match="start_monitoring first"):
        collector.get_comprehensive_report()
    with collector:
        pass
    with pytest.raises(ConfigError, match="'json' or 'csv'"):
        collector.export_metrics(tmp_path / "m.xml", format="xml")
    (tmp_path / "file").write_text("")
    with pytest.raises(StreamSplitError, match="cannot be written"):
        collector.export_metrics(tmp_path / "file" / "m.json")
    with pytest.raises(ConfigError, match="did you mean"):
        MetricsCollector(profile="pi5")
