"""Text from pipes, in whatever encoding."""

from __future__ import annotations

import codecs
import io
import os
import sys

import pytest

from mmtune.errors import UsageError
from mmtune.serve import questions
from mmtune.types import MediaRef, Quote
from tests.serve.test_drops import PNG

TEXT = "Was ist gr\u00f6\u00dfer?"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_with_a_mark_is_read(encoding: str) -> None:
    assert questions.decoded(f"{TEXT}\r\n".encode(encoding)) == TEXT
    assert questions.decoded(codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be")) == TEXT


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (TEXT.encode("latin-1"), "not UTF-8: byte 0xf6 at position 10"),
        (TEXT.encode("cp1252"), "not UTF-8"),
        ("what?".encode("utf-16-le"), "NUL"),
        (codecs.BOM_UTF16_LE + b"a", "not UTF-8"),
        (b"\x93\x00\xfe\x81binary", "neither text nor media"),
        (b"x" * ((1 << 20) + 1), "more than 1 MiB"),
    ],
)
def test_other_text_is_refused_in_a_plain_line(data: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        questions.decoded(data)


def test_a_terminal_of_another_encoding_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(), encoding="iso-8859-1"))
    assert questions.decoded(TEXT.encode("latin-1")) == TEXT


def test_words_that_are_no_characters_are_refused() -> None:
    assert questions.readable(TEXT) == TEXT
    assert questions.readable(TEXT.encode().decode("ascii", "surrogateescape")) == TEXT  # as LC_ALL=C gives it
    with pytest.raises(UsageError, match="the question is not UTF-8: byte 0xf6"):
        questions.readable(os.fsdecode(TEXT.encode("latin-1")))


@pytest.mark.parametrize(
    ("data", "kind"),
    [(PNG, MediaRef), (b"some words", Quote), (b"1 2 3\n4 5 6\n", Quote), (b"", None), (b" \n", None)],
)
def test_what_is_piped_beside_a_question(data: bytes, kind: type, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x").write_bytes(data)
    with (tmp_path / "x").open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        found = questions.beside()
    assert found is None if kind is None else isinstance(found, kind)


def test_a_pipe_into_which_nobody_writes_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "PATIENCE", 0.05)
    read, write = os.pipe()
    with os.fdopen(read) as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert questions.beside() is None
    os.close(write)
