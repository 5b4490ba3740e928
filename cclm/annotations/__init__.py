"""Annotation files of the benchmarks → rows: one file per data set, what was dropped and why, and where images lie."""
