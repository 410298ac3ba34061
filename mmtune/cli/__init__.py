"""The `mmtune` command: parsing only. Each command imports what it needs when it runs.

One file for each group of commands. Importing it adds them to the app, so the help shows them in this order.
"""

# ruff: noqa: I001 - the order is the help's
from __future__ import annotations

from mmtune.cli import init_recipe, train, chat, show, checkpoints, data  # noqa: F401
from mmtune.cli.entry import main
from mmtune.cli.options import app

__all__ = ["app", "main"]
