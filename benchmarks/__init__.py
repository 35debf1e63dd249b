"""Measurements side by side, each a ratio with its spread; `python -m benchmarks` runs them all.

A module of this folder that has `run() -> list[Row]` (see table.py) is one of them.
Nothing here is a test: figures are noisy, targets are met or missed, and each miss is said.
"""
