"""The `mmtune` command: parsing only. Each command imports what it needs when it runs.

One file for each group of commands. Importing it adds them to the app, so the help shows them in this order.
"""

# ruff: noqa: I001 - the order is the help's
from __future__ import annotations

from mmtune.cli import begin as _begin, run as _run, talk as _talk, look as _look, carry as _carry, data as _data  # noqa: F401
from mmtune.cli.process import main
from mmtune.cli.words import app

__all__ = ["app", "main"]
