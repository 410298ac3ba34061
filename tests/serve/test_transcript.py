"""A conversation that is saved, kept, and gone on with."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from mmtune.errors import UsageError
from mmtune.serve import conversation_file, transcript
from mmtune.serve.conversation import Conversation, Settings
from mmtune.types import MediaRef, Quote
from tests.serve.fake import FakeEngine


def talk(tmp_path: Path) -> Conversation:
    (tmp_path / "a.png").write_bytes(b"picture")
    made = Conversation(FakeEngine(run=tmp_path / "run"), "be brief", Settings(max_tokens=40))
    made.attach(MediaRef("image", tmp_path / "a.png", "a.png"))
    made.quote(Quote("me", "EXIT"))
    made.ask("what?").whole()
    made.attach(MediaRef("video", tmp_path / "a.png", "clip.mp4", 1.0, 2.5))
    return made


def through(saved: Conversation, path: Path, check=None) -> tuple[Conversation, list[str]]:
    path.write_bytes(transcript.dumps(saved.transcript()))
    other = Conversation(FakeEngine())
    return other, other.restore(transcript.read(path), check)


def test_a_saved_conversation_comes_back_whole(tmp_path: Path) -> None:
    saved = talk(tmp_path)
    other, notes = through(saved, tmp_path / "talk.json")
    assert notes == [] and other.turns == saved.turns and other.waiting == saved.waiting
    assert (other.system, other.settings) == ("be brief", Settings(max_tokens=40))
    assert transcript.read(tmp_path / "talk.json").summary() == "1 exchange, 1 medium shown"
    other.undo()
    assert other.waiting[0] == saved.turns[0].parts[0]


def test_media_that_changed_or_are_gone_are_left_out_by_name(tmp_path: Path) -> None:
    saved = talk(tmp_path)
    saved.attach(MediaRef("image", b"bytes", "standard input"))
    record = transcript.dumps(saved.transcript())
    (tmp_path / "a.png").write_bytes(b"another")
    (tmp_path / "talk.json").write_bytes(record)
    other = Conversation(FakeEngine())
    notes = other.restore(transcript.read(tmp_path / "talk.json"))
    assert len(notes) == 3 and "image a.png has changed" in notes[0] and "never a file" in notes[2]
    assert other.turns[0].parts == (Quote("me", "EXIT"), "what?") and other.waiting == []
    (tmp_path / "a.png").unlink()
    os.mkfifo(tmp_path / "a.png")  # is not waited for
    assert "is not at" in Conversation(FakeEngine()).restore(transcript.read(tmp_path / "talk.json"))[0]


@pytest.mark.parametrize("start", [10**400, -1, float("nan"), True])
def test_a_range_of_time_that_is_none_leaves_its_medium_out(tmp_path: Path, start: float) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"clip")
    digest = hashlib.sha256(b"clip").hexdigest()
    part = {"type": "video", "origin": "clip.mp4", "path": str(clip), "sha256": digest, "start": start, "end": None}
    (tmp_path / "talk.json").write_text(json.dumps({"turns": [], "waiting": [part]}))
    _, waiting, notes = transcript.read(tmp_path / "talk.json").restored()
    assert waiting == [] and len(notes) == 1 and "clip.mp4 from" in notes[0]


def test_media_that_the_run_does_not_take_are_left_out(tmp_path: Path) -> None:
    def check(kind: str, origin: str) -> None:
        if kind == "video":
            raise UsageError(f"{origin} is video")

    other, notes = through(talk(tmp_path), tmp_path / "talk.json", check)
    assert notes == ["clip.mp4 is video; it is left out"] and other.waiting == []


def test_the_digest_is_of_what_was_shown(tmp_path: Path) -> None:
    made = talk(tmp_path)
    asked = []
    made.engine.digest = lambda ref: asked.append(ref) or "0" * 64
    [media] = [part for part in made.transcript()["turns"][1]["parts"] if part["type"] == "image"]
    assert media["sha256"] == "0" * 64 and asked


def test_a_conversation_with_old_keys_is_read_and_saved_with_new_ones(tmp_path: Path) -> None:
    def aged(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{{"type": "kind"}.get(key, key): value for key, value in part.items()} for part in parts]

    tree = talk(tmp_path).transcript()
    assert all("type" in part for turn in tree["turns"] for part in turn["parts"])
    turns = [{**turn, "parts": aged(turn["parts"])} for turn in tree["turns"]]
    old = {**tree, "turns": turns, "waiting": aged(tree["waiting"])}
    assert '"kind"' in json.dumps(old["turns"]) and '"type"' not in json.dumps(old["turns"])
    file = tmp_path / "old.json"
    file.write_bytes(transcript.dumps(old))
    other = Conversation(FakeEngine())
    assert other.restore(transcript.read(file)) == []
    assert other.transcript()["turns"] == tree["turns"] and other.waiting == talk(tmp_path).waiting


def test_half_characters_are_saved(tmp_path: Path) -> None:
    data = transcript.dumps({"turns": [{"role": "user", "parts": [{"type": "text", "text": "gr\udcf6n"}]}]})
    assert json.loads(data)["turns"][0]["parts"][0]["text"] == "gr\udcf6n"


WORDS = {"type": "text", "text": "x"}


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ("no json", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ([], "no list of turns"),
        ({"turns": 3}, "no list of turns"),
        ({"turns": ["x"]}, "role and parts"),
        ({"turns": [{"role": "user", "parts": [WORDS]}]}, "questions with their answers"),
        ({"turns": [{"role": "assistant", "parts": [WORDS]}, {"role": "user", "parts": [WORDS]}]}, "questions with"),
        ({"turns": [{"role": "user", "parts": [{"type": "text"}]}]}, "role and parts"),
        ({"turns": [], "settings": {"max_tokens": 0}}, "max_tokens 0"),
        ({"turns": [{"role": "user", "parts": [{"type": []}]}]}, "role and parts"),
        ({"turns": [], "settings": {"max_tokens": "many"}}, "settings"),
        ({"turns": [], "settings": {"shell": 1}}, "settings"),
        ({"turns": [], "waiting": [{"type": "image", "origin": "x"}]}, "waiting"),
        ({"turns": [], "system": 3}, "system"),
    ],
)
def test_what_is_no_conversation_is_refused(tmp_path: Path, tree, message: str) -> None:
    path = tmp_path / "talk.json"
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree))
    with pytest.raises(UsageError, match=message):
        transcript.read(path)


def test_a_file_that_is_not_there_or_never_ends_is_refused(tmp_path: Path) -> None:
    for path, message in (("none", "no such file"), (".", "no plain file"), ("/dev/zero", "no plain file")):
        with pytest.raises(UsageError, match=message):
            transcript.read(tmp_path / path)


# ------------------------------------------------------------------------------------------------ the last one


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MMTUNE_CONVERSATION", str(tmp_path / "state" / "last.json"))
    return tmp_path / "state" / "last.json"


def test_the_last_conversation_is_kept_for_its_owner(tmp_path: Path, file: Path) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    file.parent.mkdir()
    file.symlink_to(tmp_path / "elsewhere")
    conversation_file.ConversationFile().keep(talk(tmp_path))
    assert (tmp_path / "elsewhere").read_text() == "mine"  # a link is replaced, not followed
    assert file.stat().st_mode & 0o777 == 0o600 and [file] == list(file.parent.iterdir())
    saved = conversation_file.last()
    assert saved.run == str(tmp_path / "run") and saved.system == "be brief" and len(saved.turns) == 2


def test_it_is_bounded_and_the_oldest_goes_first(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation_file, "LARGEST", 3000)
    made = talk(tmp_path)
    for number in range(30):
        made.ask(f"question {number}").whole()
    conversation_file.ConversationFile().keep(made)
    saved = conversation_file.last()
    assert file.stat().st_size <= 3000 and 2 <= len(saved.turns) < 60
    assert saved.turns[-2]["parts"][-1]["text"] == "question 29" and saved.system == "be brief"


def test_nothing_is_kept_where_nobody_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MMTUNE_CONVERSATION", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    conversation_file.ConversationFile().keep(talk(tmp_path))
    assert not (tmp_path / ".local").exists()
    with pytest.raises(UsageError, match="MMTUNE_CONVERSATION"):
        conversation_file.last()
    monkeypatch.setenv("MMTUNE_CONVERSATION", str(tmp_path / "a.png" / "x"))  # no folder
    conversation_file.ConversationFile().keep(talk(tmp_path))
    assert "could not be kept" in capsys.readouterr().err


def test_what_was_cleared_is_forgotten(tmp_path: Path, file: Path) -> None:
    made, store = talk(tmp_path), conversation_file.ConversationFile()
    store.keep(made)
    made.clear()
    store.keep(made)
    with pytest.raises(UsageError, match=r"last\.json"):
        conversation_file.last()
