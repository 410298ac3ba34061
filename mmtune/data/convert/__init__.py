"""Annotation files, tables and folders of media to shards, each record with its media beside it.

A source is cut into pieces (`sources`); a piece is read (`text`, `tables`, `folders`), its records are brought to one
spelling (`spellings`, `turns`), their media are found and judged by content (`media`), and each record is written as
members of a shard if the format that will read it accepts it (`records`, `write`). `run` does all of this with many
processes, and goes on after it was stopped. What cannot be used is a line of `convert.jsonl`.
"""
