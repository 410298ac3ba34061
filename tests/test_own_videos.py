"""MP4 files and LLaVA-style conversations through shards, index, check, training and chat, as anybody's would go."""

from __future__ import annotations

import importlib.util
import json
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from mmtune import cli
from tests.media import make

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["run.batch_tokens=480", "run.length=240"]


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> ModuleType:
    """`tools/try_own_videos`, with its commands run in this process, which has the heavy packages already."""
    spec = importlib.util.spec_from_file_location("try_own_videos", ROOT / "tools" / "try_own_videos.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*words: object) -> str:
        first, *rest = (str(word) for word in words)
        module.ran.append(first if first != "mmtune" else " ".join(rest[: 2 if rest[0] == "data" else 1]))
        done = CliRunner().invoke(cli.app, rest)
        if done.exception and not isinstance(done.exception, SystemExit):
            raise done.exception
        if done.exit_code:
            raise SystemExit(done.exit_code)
        return done.stdout.strip()

    module.ran = []
    monkeypatch.setattr(module, "run", run)
    return module


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tiny films, one of them with sound."""
    path = tmp_path / "films"
    path.mkdir()
    (path / "Red_ball-2.mp4").write_bytes(make.video(count=16, rate=8))
    (path / "yard.mp4").write_bytes(make.video(count=24, rate=8, sound=True))
    (path / "notes.txt").write_text("not a film")
    return path


def test_the_whole_way_from_names_and_lengths(tool: ModuleType, folder: Path, tmp_path: Path) -> None:
    answer = tool.whole_way(folder, tmp_path / "out", None, 40, "pocket", SMALL)
    assert tool.ran == ["data convert", "data index", "data check", "train", "chat"]
    records = json.loads((tmp_path / "out" / "talks.json").read_text())
    said = [[turn["value"] for turn in record["conversations"]] for record in records]
    assert [record["video"] for record in records] == ["Red_ball-2.mp4", "yard.mp4"]
    assert [one[1] for one in said] == ["red ball 2", "yard"]
    assert [one[3] for one in said] == ["about 2 seconds", "about 3 seconds"]
    with tarfile.open(tmp_path / "out" / "shards" / "00000.tar") as tar:
        assert len(tar.getnames()) == 4
        assert tar.extractfile("000000001.mp4").read() == (folder / "yard.mp4").read_bytes()
    assert answer


def test_conversations_of_ones_own(tool: ModuleType, folder: Path, tmp_path: Path) -> None:
    """Several turns, and a name without its suffix, as some published files have it."""
    said = [("human", "what moves?\n<video>"), ("gpt", "a ball"), ("human", "where?"), ("gpt", "in the yard")]
    record = {"video": "yard", "conversations": [{"from": who, "value": text} for who, text in said]}
    file = tmp_path / "talks.json"
    file.write_text(json.dumps([record]))
    assert tool.whole_way(folder, tmp_path / "out", file, 40, "pocket", SMALL)
    assert tool.question(folder, [record]) == (folder / "yard.mp4", "what moves?", "a ball")


def test_it_stops_at_the_first_fault(tool: ModuleType, folder: Path, tmp_path: Path) -> None:
    (folder / "yard.mp4").write_bytes((folder / "yard.mp4").read_bytes()[:300])
    with pytest.raises(SystemExit, match=r"yard\.mp4 cannot be opened"):
        tool.whole_way(folder, tmp_path / "a", None, 2, "pocket", SMALL)
    record = {
        "video": "yard.mp4",
        "conversations": [{"from": "human", "value": "<video>"}, {"from": "gpt", "value": "x"}],
    }
    (tmp_path / "talks.json").write_text(json.dumps([record]))
    with pytest.raises(SystemExit) as ended:
        tool.whole_way(folder, tmp_path / "b", tmp_path / "talks.json", 2, "pocket", SMALL)
    assert ended.value.code == 1, "no record is usable, which `data check` answers with"
    assert tool.ran[-1] == "data check", "nothing was trained"
    with pytest.raises(SystemExit, match=r"/b\b"):
        tool.whole_way(folder, tmp_path / "b", None, 2, "pocket", SMALL)
    (folder / "yard.mp4").unlink(), (folder / "Red_ball-2.mp4").unlink()
    with pytest.raises(SystemExit, match=r"/films\b"):
        tool.whole_way(folder, tmp_path / "c", None, 2, "pocket", SMALL)


def test_a_command_that_fails_ends_it_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    """The real `run`, on a module of the standard library."""
    spec = importlib.util.spec_from_file_location("try_own_videos_", ROOT / "tools" / "try_own_videos.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.run("calendar", "2024", "2").splitlines()[0].strip() == "February 2024"
    with pytest.raises(SystemExit) as ended:
        module.run("calendar", "2024", "99")
    assert ended.value.code not in (0, None)
    assert "nothing after it was tried" in capsys.readouterr().err


def test_options_may_stand_between_the_changes(
    tool: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = []
    monkeypatch.setattr(tool, "whole_way", lambda *words: given.append(words))
    words = [str(folder), "run.seed=1", "--steps", "7", "run.length=240", "--out", str(tmp_path / "out"), "run.keep=1"]
    monkeypatch.setattr(sys, "argv", ["try_own_videos", *words])
    tool.main()
    ((films, out, _, steps, recipe, changes),) = given
    assert (films, out, steps, recipe) == (folder, tmp_path / "out", 7, "pocket")
    assert changes == ["run.seed=1", "run.length=240", "run.keep=1"]
