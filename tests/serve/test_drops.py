"""Files inside what a person types."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

import pytest

from mmtune.errors import UsageError
from mmtune.serve import drops

PNG = b"\x89PNG\r\n\x1a\n" + bytes(64)
MP4 = b"\0\0\0\x18ftypisom" + bytes(64)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my things").mkdir()
    for name in ("a.png", "b.PNG", "it's.png", "plain", "my things/my dog.png", "gr\u00fcn.png"):
        (tmp_path / name).write_bytes(PNG)
    (tmp_path / "clip.mp4").write_bytes(MP4)
    (tmp_path / "my clip.mp4").write_bytes(MP4)
    (tmp_path / "notes.md").write_text("words")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def seen(text: str) -> tuple[list[str], str]:
    typed = drops.media_in(text)
    return [Path(ref.source).name + ref.range for ref in typed.media], typed.question


@pytest.mark.parametrize("end", ["", " ", " what is it?"])
@pytest.mark.parametrize("style", ["'{}'", '"{}"', "escaped", "{}", "address", "~"])
def test_a_dropped_file_with_blanks_is_found(here: Path, style: str, end: str) -> None:
    path = str(here / "my things" / "my dog.png")
    written = {
        "escaped": path.replace(" ", "\\ "),
        "address": "file://" + quote(path),
        "~": "~/my\\ things/my\\ dog.png",
    }.get(style) or style.format(path)
    assert seen(written + end) == (["my dog.png"], end.strip())


@pytest.mark.parametrize(
    ("text", "names", "question"),
    [
        ("a.png", ["a.png"], ""),
        ("./a.png what?", ["a.png"], "what?"),
        ("what is in ./a.png?", ["a.png"], "what is in a.png?"),
        ("What is this? ./a.png", ["a.png"], "What is this?"),
        ("is a.png 'my things/my dog.png', or not", ["a.png", "my dog.png"], "is a.png my dog.png, or not"),
        ("'a.png' 'b.PNG'", ["a.png", "b.PNG"], ""),
        ("a.png a.png same?", ["a.png"], "same?"),
        ("'it'\\''s.png' who?", ["it's.png"], "who?"),
        ("what's in it's.png", ["it's.png"], "what's in it's.png"),
        ("(a.png)", ["a.png"], "(a.png)"),
        ("gr\u00fcn.png\nwhat?", ["gr\u00fcn.png"], "what?"),
        ("file:///~nobody/x", [], "file:///~nobody/x"),
        ("clip.mp4 00:10-00:20 what?", ["clip.mp4@10.0-20.0"], "what?"),
        ("what happens in clip.mp4 5-7?", ["clip.mp4@5.0-7.0"], "what happens in clip.mp4?"),
        ("'my clip.mp4' 10s-20s", ["my clip.mp4@10.0-20.0"], ""),
        ("clip.mp4 5 people?", ["clip.mp4"], "5 people?"),
        ("a.png 10-20 people?", ["a.png"], "10-20 people?"),
    ],
)
def test_files_are_found_wherever_they_stand(here: Path, text: str, names: list[str], question: str) -> None:
    assert seen(text) == (names, question)


@pytest.mark.parametrize(
    "text",
    [
        "true/false?", "and/or", "?!", "~", "\U0001f600", 'what does "STOP" mean?', "it's 3/4", "plain",
        "what is plain", "notes.md", "read notes.md", "is x.png good?", "what is a .png?", "'unclosed", "a\\b",
        "x" * 9000, "\0",
    ],
)  # fmt: skip
def test_words_stay_words(here: Path, text: str) -> None:
    assert seen(text) == ([], text)


def test_a_path_with_a_drive_is_shown_as_it_was_typed(here: Path) -> None:
    with pytest.raises(UsageError, match=r"^C:\\clips\\a\.mp4: no such file"):
        drops.media_in("C:\\clips\\a.mp4")


@pytest.mark.parametrize("text", ["./missing.png", "missing.png", "/no/where.mp4 what?", "what is ~/x.jpg?", "file:///a%20b.png"])
def test_a_path_that_leads_nowhere_is_told(here: Path, text: str) -> None:
    with pytest.raises(UsageError, match="no such file"):
        drops.media_in(text)


def test_addresses_of_other_machines_are_not_read(here: Path) -> None:
    typed = drops.media_in("what is in https://example.org/a.png?sig=secret")
    assert typed.media == [] and typed.unread == ["https://example.org/a.png"]
    for text in ("https://example.org/a.png", "file://elsewhere/a.png"):
        with pytest.raises(UsageError, match="is not read"):
            drops.path_first(None, text)


@pytest.mark.parametrize(
    ("rest", "names", "question"),
    [
        ("my things/my dog.png what is it?", ["my dog.png"], "what is it?"),
        ("plain", ["plain"], ""),
        ("plain plain words", ["plain"], "plain words"),
        ("'my things/my dog.png' a.png which?", ["my dog.png", "a.png"], "which?"),
    ],
)
def test_a_command_takes_the_path_first(here: Path, rest: str, names: list[str], question: str) -> None:
    typed = drops.path_first("image", rest)
    assert ([Path(ref.source).name for ref in typed.media], typed.question) == (names, question)


@pytest.mark.parametrize(
    ("rest", "message"),
    [("'a.png", "must end with"), ("'my things'", "folder"), ("b.png", "no such"), ("clip.mp4", "video")],
)
def test_what_is_no_picture_is_refused(here: Path, rest: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        drops.path_first("image", rest)


def test_a_pipe_of_the_file_system_is_no_medium(here: Path) -> None:
    os.mkfifo(here / "p.png")
    with pytest.raises(UsageError, match=r"p\.png"):
        drops.path_first("image", "p.png")


@pytest.mark.parametrize("text", ["'my talk.json'", '"my talk.json"', "my\\ talk.json", " my talk.json "])
def test_a_name_for_saving_may_be_quoted(text: str) -> None:
    assert drops.whole_path(text) == "my talk.json"
