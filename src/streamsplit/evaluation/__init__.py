"""Probes, metrics, experiments, reports."""
