"""Benchmarks: what is asked, how answers are scored, and what came out. A suite is one file and one row in `table`."""
