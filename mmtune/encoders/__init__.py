"""Encoders: media to `Features`. One file per encoder; the file name is the name in a recipe."""
