"""The terminal around a chat: reading lines with history, saying things beside the answer."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from mmtune.serve.text import printable


def say(text: str) -> None:
    """A line for the person, on stderr: stdout holds answers only."""
    print(printable(text), file=sys.stderr, flush=True)


def is_terminal() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


class Reader:
    """Reads lines, with editing and history where the terminal offers them.

    The history is the file `$MMTUNE_HISTORY`, else in `$XDG_STATE_HOME/mmtune/chat_history`, else under
    `~/.local/state`; an empty `MMTUNE_HISTORY` keeps none. The file is readable by its owner only.
    """

    def __init__(self, complete: Callable[[str, int], list[str]]) -> None:
        self._readline = None
        self._complete = complete
        self._candidates: list[str] = []
        self._file = state_file("MMTUNE_HISTORY", "chat_history")
        if not sys.stdin.isatty():
            return
        try:
            import readline
        except ImportError:  # not everywhere; lines can be typed without it
            return
        self._readline = readline
        readline.set_completer_delims(" \t\n")
        readline.set_completer(self._candidate)
        readline.parse_and_bind("tab: complete")
        # several lines that are pasted are one question; Python turns this off
        readline.parse_and_bind("set enable-bracketed-paste on")
        if self._file and self._file.is_file():
            try:
                readline.read_history_file(self._file)
            except OSError as error:
                say(f"the history {self._file} cannot be read: {error}")

    def line(self, prompt: str) -> str:
        """One line, without its end.

        Raises:
            EOFError: no more lines (Ctrl-D).
            KeyboardInterrupt: Ctrl-C.
        """
        if is_terminal():
            return input(prompt)
        print(prompt, end="", file=sys.stderr, flush=True)
        text = sys.stdin.readline()
        if not text:
            raise EOFError
        return text.rstrip("\n")

    def _candidate(self, _: str, state: int) -> str | None:
        if state == 0:
            assert self._readline is not None
            line = self._readline.get_line_buffer()[: self._readline.get_endidx()]
            self._candidates = self._complete(line, self._readline.get_begidx())
        return self._candidates[state] if state < len(self._candidates) else None

    def keep(self) -> None:
        """Write the history."""
        if not (self._readline and self._file):
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._file, os.O_CREAT | os.O_WRONLY, 0o600))
            self._readline.set_history_length(1000)
            self._readline.write_history_file(self._file)
        except OSError as error:
            say(f"the history could not be kept in {self._file}: {error}")


def state_file(variable: str, name: str) -> Path | None:
    """A file in which a chat keeps something for its owner.

    It is `$variable`, else `mmtune/name` in `$XDG_STATE_HOME` or `~/.local/state`; None where the variable is empty,
    which keeps nothing.
    """
    wish = os.environ.get(variable)
    if wish is not None:
        return Path(wish).expanduser() if wish else None
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "mmtune" / name
