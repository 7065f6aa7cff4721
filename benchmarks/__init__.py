"""Measured figures; every module runs alone (`python -m benchmarks.NAME`) and writes JSON under benchmarks/results/."""
