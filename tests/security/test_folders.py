"""Nothing is written outside the folder of a run that somebody handed over."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mmtune import config
from mmtune.commands import train as command
from mmtune.data._feature_file import FeatureFile
from mmtune.errors import DataError, UsageError
from mmtune.eval import run as evals


def full(folder: Path) -> FeatureFile:
    feature_file = FeatureFile(folder, 2, 3, {})
    with feature_file.writing() as writer:
        writer.put("a", np.ones((1, 2, 3), dtype=np.float32))
    return feature_file


def test_numbers_of_kept_features_are_looked_at(tmp_path: Path) -> None:
    whole = full(tmp_path / "features")
    with (tmp_path / "features" / "index.jsonl").open("a") as file:
        for row in ('"at": -5, "frames": 1', '"at": 1e3, "frames": 1', '"at": 0, "frames": true', '"at": "0"'):
            file.write(f'{{"key": "b", {row}}}\n')
        file.write('[]\n{"key": 3, "at": 0, "frames": 1}\n{"mark": []}\n{"reason": "x"}\n' + "[" * 100_000 + "\n")
    again = FeatureFile(tmp_path / "features", 2, 3, {})
    assert again.offsets == whole.offsets == {"a": (0, 1)} and not again.faults and not again.complete
    (tmp_path / "features" / "about.json").unlink()
    (tmp_path / "features" / "about.json").symlink_to("/dev/zero")
    with pytest.raises(DataError, match="no plain file"):
        FeatureFile(tmp_path / "features", 2, 3, {})


def test_shards_that_only_a_recipe_names_get_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    made = SimpleNamespace(samples=list)
    monkeypatch.setattr(evals, "Corpus", lambda patterns, say, write: seen.append(write) or made)
    for own in (True, False):
        assert list(evals._usable(None, ["x"], None, None, (), own)) == []  # type: ignore[arg-type]
    assert seen == [True, False]


def test_a_run_that_goes_on_writes_no_features_elsewhere_unasked(tmp_path: Path, monkeypatch) -> None:
    run = tmp_path / "run"
    run.mkdir()
    tree = config.read("pocket", [f"run.feature_cache={tmp_path / 'home' / '.config'}"])
    (run / "recipe.yaml").write_text(config.dump(tree))
    trained = []
    monkeypatch.setattr("mmtune.training.loop.train", lambda *_, **__: trained.append(1) or SimpleNamespace(code=0))
    with pytest.raises(UsageError, match=r"only the recipe in .*\n.*\n.*run.feature_cache="):
        command.run(str(run), [], None, True, False)
    assert not trained and not (tmp_path / "home").exists()
    command.run(str(run), [f"run.feature_cache={tmp_path / 'home' / '.config'}"], None, True, False)
    command.run(str(run), [f"run.feature_cache={run / 'kept'}"], None, True, False)
    full(tmp_path / "home" / ".config" / "clip-0")
    command.run(str(run), [], None, True, False)
    (tmp_path / "elsewhere" / "clip-0").mkdir(parents=True)
    (tmp_path / "elsewhere" / "clip-0" / "about.json").touch()
    (run / "kept").symlink_to(tmp_path / "elsewhere")
    (run / "recipe.yaml").write_text(config.dump(config.read("pocket", [f"run.feature_cache={run / 'kept'}"])))
    with pytest.raises(UsageError, match="kept in the run is a link"):
        command.run(str(run), [], None, True, False)
    assert len(trained) == 3
