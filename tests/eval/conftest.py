"""A run to evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mmtune import model as models
from mmtune.checkpoint import store


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, recipe: Any) -> Path:
    """The folder of a run of the module's `recipe`, as it is before its first step."""
    out = tmp_path_factory.mktemp("run") / "run"
    store.save_run(out, models.build(recipe.model), recipe)
    return out
