"""Benchmarks: what `ochat eval` asks, and how answers are scored."""
