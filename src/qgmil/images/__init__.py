"""Slides and pictures of instances: what is read, how large it may be, and where the tissue is."""
