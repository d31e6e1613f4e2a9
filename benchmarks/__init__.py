"""Measurements of what the penalty costs; `python -m benchmarks --help`."""
