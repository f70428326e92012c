"""Benchmarks, run by hand: `python -m benchmarks`. Tests never assert speed or peak memory."""
