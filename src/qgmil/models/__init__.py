"""Aggregators: one a file, found by the registry."""
