"""`tools/measure`: no old name is left, and what it counts is counted right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools import measure, old_names

ROOT = Path(__file__).resolve().parent.parent


def test_no_old_name_is_left() -> None:
    assert old_names.left(ROOT, measure.sources(ROOT)) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mmtune/fusion/x.py", "class A:\n    takes_places: bool = True\n"),
        ("mmtune/recipe.py", "class Group:\n    floor: float = 0.0\n"),
        ("mmtune/types.py", "class Batch:\n    frames: dict\n"),
        ("mmtune/training/step.py", "def give(optimizer): ...\n"),
        ("mmtune/training/loop.py", "print(self.watch)\n"),
        ("mmtune/training/cut.py", ""),
        ("mmtune/train/loop.py", ""),
        ("mmtune/processor.py", "f(controls=1)\n"),
        ("tests/test_x.py", "from mmtune.train.keeper import Keeper as Other, Team\n"),
    ],
)
def test_an_old_name_is_found_where_it_would_be_one(tmp_path: Path, path: str, text: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    assert len(old_names.left(tmp_path, measure.sources(tmp_path))) == 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("mmtune/media/video.py", "def take(clip, kind): return clip.frames\n"),
        ("mmtune/types.py", "class FeatureShape:\n    frames: int = 1\n"),
        ("mmtune/commands/train.py", "start = 1\n"),
        ("mmtune/training/step.py", 'print("keeper, Team")  # Team\n'),
    ],
)
def test_the_same_word_in_its_plain_sense_is_not_one(tmp_path: Path, path: str, text: str) -> None:
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(text)
    assert old_names.left(tmp_path, measure.sources(tmp_path)) == []


def test_a_repeated_stretch_is_one_line_with_its_whole_length(tmp_path: Path) -> None:
    (tmp_path / "mmtune").mkdir()
    shared = [f"value_{number} = {number}" for number in range(9)]
    first = ["import os", *shared[:4], "# a remark", "", *shared[4:], "one = 1"]
    (tmp_path / "mmtune/a.py").write_text("\n".join(first))
    (tmp_path / "mmtune/b.py").write_text("\n".join(["two = 2", *shared, "three = 3", *shared[:5]]))
    assert measure.repeated(tmp_path) == ["mmtune/a.py:2 mmtune/b.py:2 9"]


def test_statements_are_counted_with_those_inside_of_others(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text('class A:\n    def f(self):\n        """Doc."""\n        x = 1\n        if x:\n            x = 2\n')
    ((name, node),) = measure.functions(file)
    assert (name, measure.statements(node), measure.length(node)) == ("A.f", 3, 5)


def test_returns_are_visits_of_a_file_that_was_left() -> None:
    path = [("a.py", "f"), ("a.py", "g"), ("b.py", "A._x"), ("_c.py", "f"), ("a.py", "h"), ("b.py", "y"), ("a.py", "z")]
    assert measure.passes(path) == (3, 3)
    assert measure.passes(path, public=True) == (2, 1)


def test_the_path_of_a_sample_goes_from_the_loader_to_the_loss() -> None:
    path = measure.sample_path(ROOT)
    files = [file for file, _ in path]
    assert path[0] == ("mmtune/data/loader.py", "Loader.steps")
    order = ["mmtune/data/shards.py", "mmtune/processor.py", "mmtune/media/video.py", "mmtune/training/step.py"]
    assert [files.index(file) for file in order] == sorted(files.index(file) for file in order)
    assert "mmtune/objectives/cross_entropy.py" in files


def test_the_command_prints_what_it_measures() -> None:
    command = [sys.executable, "-P", str(ROOT / "tools/measure.py"), "--no-trace", "--setup", "take_step"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "set-up of a run        take_step in mmtune/training/step.py" in done.stdout
    assert "old names              0" in done.stdout
