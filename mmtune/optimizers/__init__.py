"""Tuners: change a language model in place and say what was added or opened."""
