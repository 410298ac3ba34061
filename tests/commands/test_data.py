"""`mmtune data make` and `mmtune data index`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmtune.commands import data
from mmtune.errors import DataError


def test_clips_are_made_and_indexed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pocket"
    data.make(out=out, clips=3, seed=1, level="easy", split="val", per_shard=2, workers=1)
    said = capsys.readouterr()
    shards = sorted(out.glob("*.tar"))
    assert said.out.split() == [str(path) for path in shards] and len(shards) == 2
    assert "2 shards, 3 samples, 0 refused" in said.err
    data.index([str(out / "*.tar")])
    assert "unchanged" in capsys.readouterr().err


def test_a_pattern_that_matches_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        data.index([str(tmp_path / "none-*.tar")])
