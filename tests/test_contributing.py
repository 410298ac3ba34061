"""The examples of CONTRIBUTING.md, in a folder outside the package, run by the commands below them."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from mmtune import cli, registry, renamed, testing
from mmtune.data.formats.base import Record
from tests.data import tars
from tests.media import make
from tools import docs, docs_inputs

PAGE = docs.ROOT / "CONTRIBUTING.md"


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the examples, with shards as the format of one of them wants them, and a clip to ask about."""
    docs_inputs.write_examples(tmp_path)
    clip = make.video(6)
    (tmp_path / "clip.mp4").write_bytes(clip)
    (tmp_path / "lines").mkdir()
    records = [[(f"{n}.mp4", clip), (f"{n}.txt", b"What happens?\nsomething moves")] for n in range(9)]
    bad = [("9.mp4", clip), ("9.txt", b"one line alone")]
    tars.write(tmp_path / "lines" / "0.tar", [member for record in [*records, bad] for member in record])
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MMTUNE_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def test_the_examples_train_and_answer(outside: Path) -> None:
    commands = [command for command in docs.commands(PAGE) if command.text.startswith("PYTHONPATH=. mmtune ")]
    assert len(docs.examples(PAGE)) == 3 and len(commands) == 3
    for command in commands:
        more = ["run.workers=0"] if "train" in command.words else []
        done = CliRunner().invoke(cli.app, [*command.words[2:], *more])
        assert done.exit_code == 0, f"{command.where}: {done.output}\n{done.exception}"
    weights = {path.stem: load_file(path) for path in (outside / "runs/mean/weights").glob("*.safetensors")}
    assert sum("connector.project" in name for name in weights["connector"]) == 2
    assert weights["norms"] and all(name.startswith("llm.") for name in weights["norms"])
    skipped = [json.loads(line) for line in (outside / "runs/mean/skipped.jsonl").read_text().splitlines()]
    assert {(one["member"], one["reason"]) for one in skipped if "member" in one} == {("9", "missing_key")}


def test_the_examples_keep_their_contracts(outside: Path) -> None:
    registry.allow(["mine.mean:Mean", "mine.norms:Norms", "mine.lines:Lines"])
    testing.check("connectors", "mine.mean:Mean", {"dropout": 0.1})
    testing.check("tuners", "mine.norms:Norms")
    clip = (outside / "clip.mp4").read_bytes()
    record = Record("0/1", {"mp4": clip, "txt": b"What happens?\nsomething moves"}, "1")
    testing.check("data/formats", "mine.lines:Lines", records=[record])


def test_code_from_outside_waits_for_a_word(outside: Path) -> None:
    command = next(command for command in docs.commands(PAGE) if " train " in command.text)
    words = command.words[2 : command.words.index("--allow-code")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code and "mine" not in sys.modules and not (outside / "runs").exists()


def test_options_of_an_example_are_listed_once_it_is_allowed(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_allowed", set())
    command = next(one for one in docs.commands(PAGE) if one.text.startswith("PYTHONPATH=. mmtune list "))
    refused = CliRunner().invoke(cli.app, command.words[2:-2])
    assert refused.exit_code and "mine" not in sys.modules
    done = CliRunner().invoke(cli.app, command.words[2:])
    assert done.exit_code == 0 and "dropout" in done.output and "dropped in training" in done.output


def test_a_row_for_every_room() -> None:
    table = re.findall(r"^\| [\w ]+ \| `mmtune/([\w/]+)/X\.py`", PAGE.read_text(encoding="utf-8"), re.M)
    assert sorted(table) == sorted(registry.ROOMS)


def test_the_changelog_has_every_name_that_changed() -> None:
    rows = re.findall(r"^\| .* \| `([\w.*]+)` \| `([\w.*]+)` \|$", (docs.ROOT / "CHANGELOG.md").read_text(), re.M)
    fields = {(old.rpartition(".")[2], new) for old, new in renamed.FIELDS.items()}
    tensors = {(f"{old}*", f"{new}*") for old, new in renamed.TENSORS.items()}
    assert set(rows) == fields | tensors | renamed.STATE.items() | renamed.PARTS.items()
