"""Objectives: what a stream asks of the model. One file per objective; the file name is the name in a recipe."""
