"""Checkpoints: our own layout on disk, and tables of names for published ones."""
