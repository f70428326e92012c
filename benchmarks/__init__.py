"""Measurements that a person runs on purpose: `python -m benchmarks`. A speed or a peak is never a timed test."""
