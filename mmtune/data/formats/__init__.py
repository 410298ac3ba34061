"""Formats: one raw record to one `Sample`. The file name is the name in a dataset card."""
