"""Named public data sets, one file each."""
