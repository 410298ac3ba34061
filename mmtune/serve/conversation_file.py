"""The last conversation, saved so that `mmtune chat -c` can continue it.

Its file is `$MMTUNE_CONVERSATION`, else `$XDG_STATE_HOME/mmtune/last_conversation.json`, else under `~/.local/state`;
an empty `MMTUNE_CONVERSATION` keeps none. The file is readable by its owner only and holds at most `LARGEST` bytes: the
oldest exchanges go first. It is what `/save` writes, so media are in it by path and digest, not by content.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmtune import disk, paths
from mmtune.errors import UsageError
from mmtune.serve import transcript
from mmtune.serve.conversation import Conversation
from mmtune.serve.terminal import say, state_file

LARGEST = 1 << 20
"""Bytes of the file."""


class ConversationFile:
    """Saves one conversation while it continues. If that fails, one line says so, and the conversation goes on."""

    def __init__(self) -> None:
        self._file = _file()
        self._wrote = False

    def keep(self, conversation: Conversation) -> None:
        """Write it as it is now; one that was cleared is forgotten here too."""
        if self._file is None:
            return
        try:
            if conversation.turns or conversation.waiting:
                _write(self._file, _fitting(conversation.transcript()))
                self._wrote = True
            elif self._wrote:
                self._file.unlink(missing_ok=True)
        except OSError as error:
            say(f"the conversation could not be kept in {self._file}: {error.strerror or error}")
            self._file = None


def last() -> transcript.Saved:
    """The conversation that was saved last; its run is None for the run inside the package.

    Raises:
        UsageError: no conversation was saved, it cannot be read, or its run does not exist any more.
    """
    file = _file()
    if file is None or not file.exists():
        raise UsageError(
            seen="no conversation to go on with"
            + (": MMTUNE_CONVERSATION is empty, so none is kept" if file is None else f": there is no {file}"),
            expected="one that `mmtune chat` had before",
            hint='mmtune chat --image foo.jpg "What is this?"',
        )
    return transcript.read(file)


def _file() -> Path | None:
    return state_file("MMTUNE_CONVERSATION", "last_conversation.json")


def _fitting(record: dict[str, Any]) -> bytes:
    """The record as bytes, without its oldest exchanges where it is too long."""
    run = Path(record["run"]).absolute()
    record["run"] = None if run.is_relative_to(paths.PACKAGE) else str(run)
    head = 1 if record["system"] else 0
    while len(data := transcript.dumps(record)) > LARGEST and len(record["turns"]) > head:
        del record["turns"][head : head + 2]
    if len(data) > LARGEST:
        raise OSError(f"more than {LARGEST >> 20} MiB")
    return data


def _write(file: Path, data: bytes) -> None:
    """Replace the file in one step. What is a link there is replaced, not followed."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with disk.create(draft, 0o600) as out:
            out.write(data)
        os.replace(draft, file)
    finally:
        draft.unlink(missing_ok=True)
