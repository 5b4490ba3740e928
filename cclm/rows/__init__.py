"""Rows of files that others made: lines, tables, JSON and cells, each broken one told with its place."""
