"""Questions from pipes and arguments: whatever their encoding, they are read right or refused plainly."""

from __future__ import annotations

import codecs
import os
import select
import stat
import sys

from mmtune.errors import UsageError
from mmtune.serve.references import PIPE, of_bytes, sniffed
from mmtune.types import MediaRef, Quote

LARGEST = 1 << 20
"""Bytes of text that are taken from a pipe."""
PATIENCE = 0.5
"""Seconds that a pipe beside a question is waited for, once the weights are there."""
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def readable(text: str, what: str = "the question") -> str:
    """The text of an argument or a line, also where its bytes are not of the terminal's encoding but UTF-8.

    Raises:
        UsageError: they are neither.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return _text(text.encode("utf-8", "surrogateescape"), what)
    return text


def decoded(data: bytes, what: str = PIPE) -> str:
    """Text that came as bytes: UTF-8, UTF-16 or UTF-32 by its mark, else the encoding of the terminal.

    Raises:
        UsageError: it is none of these, or too long.
    """
    if len(data) > LARGEST:
        raise UsageError(
            seen=f"{what} has more than {LARGEST >> 20} MiB of text", expected="a text that a model can read"
        )
    text = _text(data, what)
    if "\0" in text:
        raise UsageError(
            seen=f"{what} holds NUL characters",
            expected="text in UTF-8, or in UTF-16 with its mark",
            hint="iconv -f utf-16le -t utf-8 FILE | mmtune chat",
        )
    return text.replace("\r\n", "\n").strip()


def _text(data: bytes, what: str) -> str:
    own = (sys.stdin.encoding if sys.stdin else "") or "utf-8"
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    try:
        return data.decode(marked or "utf-8")
    except UnicodeDecodeError as error:
        if marked is None and codecs.lookup(own).name not in ("utf-8", "ascii"):
            try:
                return data.decode(own)
            except UnicodeDecodeError:
                pass
        if b"\0" in data and marked is None:
            raise UsageError(
                seen=f"{what} is neither text nor media of a known kind",
                expected="text in UTF-8, an image, a video, a sound or a point cloud",
            ) from None
        raise _undecoded(what, data[error.start : error.start + 1], error.start) from None


def _undecoded(what: str, byte: bytes, at: int) -> UsageError:
    value = f"byte 0x{byte[0]:02x}" if len(byte) == 1 else "a character"
    return UsageError(
        seen=f"{what} is not UTF-8: {value} at position {at}",
        expected="text in UTF-8, or in UTF-16 with its mark",
        hint="iconv -f latin1 -t utf-8 FILE | mmtune chat",
    )


def piped() -> str:
    """All of standard input as a question; empty where there is nothing.

    Raises:
        UsageError: it is no text that can be read.
    """
    data = sys.stdin.buffer.read(LARGEST + 1)
    kind = sniffed(data)
    if kind and not _is_text(data):
        raise UsageError(
            seen=f"standard input holds {kind}, and there is no question",
            expected="a question as an argument",
            hint=f'mmtune chat --{kind} - "What is this?"',
        )
    return decoded(data)


def beside() -> MediaRef | Quote | None:
    """What is piped in beside a question: a medium by its content, or text, which is quoted. None for nothing.

    A pipe without a writer is waited for only `PATIENCE` seconds.

    Raises:
        UsageError: it is neither media nor text that can be read.
    """
    if not _has_content():
        return None
    data = sys.stdin.buffer.read()
    if not data.strip():
        return None
    if sniffed(data) and not _is_text(data):
        return of_bytes(None, data, PIPE)
    text = decoded(data)
    return Quote(PIPE, text) if text else None


def _has_content() -> bool:
    """Whether standard input is a pipe or a file with content."""
    try:
        number = sys.stdin.fileno()
        mode = os.fstat(number).st_mode
        if stat.S_ISREG(mode):
            return True
        ready = select.poll()
        ready.register(number, select.POLLIN)
        return stat.S_ISFIFO(mode) and bool(ready.poll(PATIENCE * 1000))
    except (OSError, ValueError):
        return False


def _is_text(data: bytes) -> bool:
    """Whether bytes that look like media are text all the same, as rows of numbers are."""
    try:
        return "\0" not in _text(data[:LARGEST], PIPE)
    except UsageError:
        return False
