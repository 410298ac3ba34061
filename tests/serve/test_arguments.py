"""The words behind `mmtune chat`."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmtune.errors import UsageError
from mmtune.serve.arguments import parse
from tests.serve.test_drops import MP4, PNG


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "recipe.yaml").touch()
    for name, data in (("a.png", PNG), ("my dog.png", PNG), ("clip.mp4", MP4), ("10-20", PNG), ("plain", b"words")):
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "run", "media", "question"),
    [
        ([], None, [], None),
        (["what?"], None, [], "what?"),
        (["run"], "run", [], None),
        (["run", "what is it?"], "run", [], "what is it?"),
        (["x" * 5000], None, [], "x" * 5000),
        (["is 3/4 more than 1/2?"], None, [], "is 3/4 more than 1/2?"),
        (["true/false?"], None, [], "true/false?"),
        (["yes/no"], None, [], "yes/no"),
        (["run", "km/h!"], "run", [], "km/h!"),
        (["clip.mp4 0:10-0:20", "what?"], None, ["clip.mp4@10.0-20.0"], "what?"),
        (["clip.mp4", "what?"], None, ["clip.mp4"], "what?"),
        (["clip.mp4"], None, ["clip.mp4"], None),
        (["run", "a.png", "my dog.png", "same?"], "run", ["a.png", "my dog.png"], "same?"),
        (["clip.mp4", "00:10-00:20", "what?"], None, ["clip.mp4@10.0-20.0"], "what?"),
        (["clip.mp4", "10s-", "a.png", "what?"], None, ["clip.mp4@10.0-", "a.png"], "what?"),
        (["clip.mp4", "10-20", "what?"], None, ["clip.mp4", "10-20"], "what?"),  # there is such a file
        (["what is in a.png?"], None, ["a.png"], "what is in a.png?"),
        (["plain"], None, [], "plain"),
        (["a.png 'my dog.png'"], None, ["a.png", "my dog.png"], None),
    ],
)
def test_words_are_told_apart(words: list[str], run: str | None, media: list[str], question: str | None) -> None:
    found = parse(words, [])
    assert [ref.origin + ref.range for ref in found.media] == media
    assert (found.run, found.question) == (Path(run) if run else None, question)


def test_a_question_that_could_be_a_path_is_said_to_be_none() -> None:
    assert "yes/no is no file and no run" in parse(["yes/no"], []).note
    assert not parse(["yes/no?"], []).note


def test_a_range_may_follow_an_option() -> None:
    for words, path in ((["00:10-00:20", "what?"], "clip.mp4"), (["what?"], "clip.mp4 00:10-00:20")):
        [ref] = parse(words, [("video", path)]).media
        assert (ref.kind, ref.origin, ref.start, ref.end) == ("video", "clip.mp4", 10, 20)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "what", "is"], "2 words"),
        (["a.png", "what", "is"], "2 words"),
        (["empty"], "no recipe.yaml"),
        (["empty", "what?"], "no recipe.yaml"),
        (["what", "is"], "folder of a run"),
        (["empty/none"], "folder of a run"),
        (["./none/there"], "folder of a run"),
        (["/none/there"], "folder of a run"),
        (["~/none"], "folder of a run"),
        (["runs/none", "what?"], "folder of a run"),
        (["~nobody-of-this-name/a.png", "what?"], "there is no user nobody-of-this-name"),
        (["a.png 0:10-0:20", "what?"], "a.png is image"),
        (["missing.mp4", "what?"], "missing.mp4: no such file"),
        (["no/where.mp4"], "where.mp4: no such file"),
        (["https://example.org/a.png", "what?"], "is not read"),
        (["clip.mp4", "00:20-00:10", "what?"], "does not end after"),
    ],
)
def test_words_that_mean_nothing(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse(words, [])


def test_an_address_is_said_to_be_not_read_and_its_secrets_are_not_shown() -> None:
    with pytest.raises(UsageError, match="is not read: a chat fetches nothing") as error:
        parse(["what?"], [("image", "https://user:word@example.org/a.png?X-Signature=abc")])
    assert "abc" not in str(error.value) and "word" not in str(error.value)
