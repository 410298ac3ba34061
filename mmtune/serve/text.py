"""Token numbers to text while they arrive: no half characters, no lost blanks, no terminal tricks."""

from collections.abc import Callable

_BROKEN = "\ufffd"
_CONTEXT = 4
"""Tokens already shown that are decoded again with the new ones, so that a tokenizer which drops or adds a blank at the
beginning of a text does it to the old part only."""


class TextStream:
    """Turns token numbers into text pieces; the pieces joined are exactly the decoded whole.

    A token may end in the middle of a UTF-8 character (byte-level BPE does that); such a tail decodes to U+FFFD and is
    held back until the rest arrives or `flush` says that nothing more will.

    Args:
        decode: token numbers to text.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._start = 0  # the window that is decoded begins here
        self._shown = 0  # tokens before this one are on the screen

    def push(self, token: int) -> str:
        """The text that became certain with this token; may be empty."""
        self._ids.append(token)
        return self._advance(final=False)

    def flush(self) -> str:
        """What was held back."""
        return self._advance(final=True)

    def _advance(self, final: bool) -> str:
        old = self._decode(self._ids[self._start : self._shown])
        new = self._decode(self._ids[self._start :])
        if new.endswith(_BROKEN) and not final:
            return ""
        # `old` was shown whole, and only ever at a character's end, so it is a prefix of `new`.
        piece = new[len(old) :]
        self._shown = len(self._ids)
        self._start = self._window()
        return piece

    def _window(self) -> int:
        """The window may only begin where a character begins, which is known of the last token shown at the latest."""
        start = max(self._start, self._shown - _CONTEXT)
        while start > self._start and self._decode(self._ids[start : self._shown]).startswith(_BROKEN):
            start -= 1
        return start


def printable(text: str) -> str:
    """Text that may go to a terminal: control characters other than line breaks and tabs are dropped.

    A model, a file name or a text inside an image may hold escape sequences; a terminal would obey them.
    """
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))
