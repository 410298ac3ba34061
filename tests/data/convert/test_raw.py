"""Records where shards are wanted: told what they are, and the one command that makes shards of them."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from mmtune import cli
from mmtune.data.patterns import expand
from mmtune.errors import DataError, UsageError
from tests.data import sources, tars
from tests.data.sources import TALK


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sources.folder(tmp_path / "set")
    (tmp_path / "set" / "a" / "1.txt").write_text("A dot")
    rows = [{"image": "set/a/1.png", "conversations": TALK}]
    (tmp_path / "my talks.json").write_text(json.dumps(rows))
    (tmp_path / "talks.jsonl").write_text(json.dumps(rows[0]))
    (tmp_path / "list.csv").write_text("image,caption\nset/a/1.png,A dot\n")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "what"),
    [
        ("my talks.json", "a JSON list"),
        ("talks.jsonl", "JSON lines"),
        ("./list.csv", "a CSV"),
        ("set", "a folder of media"),
        ("*.jsonl", "JSON lines"),
        ("{talks,talks}.jsonl", "JSON lines"),
    ],
)
def test_the_command_that_is_named_makes_shards(here, given, what):
    with pytest.raises(UsageError, match=what) as caught:
        expand(given)
    command, _, then = caught.value.hint.partition(", then data: ")
    program, *words = shlex.split(command)
    assert program == "mmtune"
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert len(expand(then.strip("[]"))) == 1


def test_a_folder_of_media_alone_is_told_what_it_lacks(here):
    (here / "set" / "a" / "1.txt").unlink()
    with pytest.raises(UsageError, match="set holds 8") as caught:
        expand("set")
    assert "write a table.csv into it" in caught.value.hint


def test_parquet_and_splits(here):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for split in ("train", "test"):
        parquet.write_table(arrow.table({"image": [tars.PNG], "text": ["x"]}), here / f"{split}-0.parquet")
    with pytest.raises(UsageError, match=r"train-0\.parquet"):
        expand("train-0.parquet")
    (here / "hub").mkdir()
    for split in ("train", "test"):
        (here / f"{split}-0.parquet").rename(here / "hub" / f"{split}-0.parquet")
    with pytest.raises(UsageError, match=r"\bhub\b") as caught:
        expand("hub")
    assert "--out shards/hub --split train" in caught.value.hint


def test_check_and_index_say_it_too(here):
    for words in (["data", "index", "talks.jsonl"], ["data", "check", "talks.jsonl", "--recipe", "pocket"]):
        done = CliRunner().invoke(cli.app, [*words, *["--stream", "caption"] * ("check" in words)])
        assert isinstance(done.exception, UsageError) and "JSON lines, and not shards" in str(done.exception)


def test_shards_of_any_name_are_shards(here):
    (path,) = tars.shards(here / "s", 1)
    path.rename(here / "s" / "part-0")
    assert expand("s/part-0") == [here.__class__("s/part-0")]
    with pytest.raises(DataError, match=r"nowhere/\*"):
        expand("nowhere/*")
    with pytest.raises(DataError, match="missing"):
        expand("nowhere.json")
