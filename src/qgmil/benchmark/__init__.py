"""The fair comparison: a grid of data sets x models x folds x seeds, its engines, its results table."""
