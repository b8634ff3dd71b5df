"""Attention of whole cohorts: measured bag by bag, summed up by class and correctness, compared between runs."""
