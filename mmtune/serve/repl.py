"""Questions and answers at a terminal: commands that begin with a slash, everything else is a question.

The weights are read by a thread while the person types the first question.
"""

from __future__ import annotations

import json
import shlex
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune import registry
from mmtune.errors import MmtuneError, UsageError
from mmtune.serve.chat import show_answer
from mmtune.serve.conversation import Answer, Conversation, Settings
from mmtune.serve.experts import Panel
from mmtune.serve.plan import to_stay
from mmtune.serve.references import reference
from mmtune.serve.terminal import Reader, say
from mmtune.types import KINDS, Kind, MediaRef

if TYPE_CHECKING:
    from mmtune.serve.engine import Engine
    from mmtune.serve.plan import Plan

PROMPT = ">>> "
_MORE = "... "

HELP = """\
/image PATH   /video PATH   /audio PATH   /points PATH
                 put a file in front of the next question; words after the path are the question
/media           what has been shown so far
/undo            forget the last question and its answer
/retry           answer the last question again
/clear           forget everything said and shown
/expert          who else looks at media;  /expert ocr  or  /expert ocr:frames=8  adds one,
                 /expert ocr off  takes it away
/set             list the settings;  /set temperature 0.5  changes one
/show            the exact prompt, with the places of media
/save FILE       write the conversation as JSON
/help            this list
/exit            leave (so does Ctrl-D); Ctrl-C stops an answer
\"\"\" on a line of its own begins and ends a question of several lines."""


class Loading:
    """An engine on its way, read by a thread."""

    def __init__(self, load: Callable[[], Engine]) -> None:
        self._engine: Engine | None = None
        self._error: BaseException | None = None
        self._load = load
        self._thread = threading.Thread(target=self._work, name="mmtune-load", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._engine = to_stay(self._load)
        except BaseException as error:  # handed to the thread that asks
            self._error = error

    def done(self) -> bool:
        """Whether `result` returns at once."""
        return not self._thread.is_alive()

    def result(self) -> Engine:
        """The engine; waits for it. Raises what reading it raised."""
        if not self.done():
            say("(reading the weights)")
        while self._thread.is_alive():
            self._thread.join(0.2)  # in slices, so that Ctrl-C gets through
        if self._error is not None:
            raise self._error
        assert self._engine is not None
        return self._engine


class Repl:
    """The loop over lines.

    Args:
        plan: the run that answers, not yet loaded.
        refs: media named on the command line, kinds already checked.
        system: text of the system turn, or none.
        settings: how answers are drawn.
        verbose: numbers after every answer.
        experts: who is asked about media.
    """

    def __init__(
        self,
        plan: Plan,
        refs: list[MediaRef],
        system: str | None,
        settings: Settings,
        verbose: bool = False,
        experts: Panel | None = None,
    ) -> None:
        self.plan = plan
        self.settings = settings
        self.system = system
        self.verbose = verbose
        self.experts = Panel() if experts is None else experts
        self._early = list(refs)
        self._loading = Loading(plan.load)
        self._conversation: Conversation | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            "media": self._media,
            "undo": self._undo,
            "retry": self._retry,
            "clear": self._clear,
            "expert": self._expert,
            "set": self._set,
            "show": lambda _: say(self.conversation.rendered()),
            "save": self._save,
            "help": lambda _: say(HELP),
        }

    @property
    def conversation(self) -> Conversation:
        """The conversation; the first use waits for the weights and looks at the media given so far."""
        if self._conversation is None:
            self._conversation = Conversation(self._loading.result(), self.system, self.settings, self.experts)
        while self._early:
            self._conversation.attach(self._early.pop(0))
        return self._conversation

    def run(self) -> int:
        """Read, answer, until Ctrl-D or /exit. Returns the exit code 0."""
        reader = Reader(self._complete)
        say(f"Takes {', '.join(('text', *self.plan.kinds))}. /help lists the commands, Ctrl-D leaves.")
        try:
            while True:
                try:
                    line = self._read(reader)
                    if line.strip() in ("/exit", "/quit", "/bye"):
                        break
                    if line.strip():
                        self._take(line.strip())
                except EOFError:
                    say("")
                    break
                except KeyboardInterrupt:
                    say("\n(Ctrl-D or /exit leaves)")
                except MmtuneError as error:
                    if self._loading.done() and self._loading._error is error:
                        raise  # nothing can be answered without weights
                    say(str(error))
        finally:
            reader.keep()
            self.experts.close()
        return 0

    # -- lines

    def _read(self, reader: Reader) -> str:
        line = reader.line(PROMPT)
        if line.strip() != '"""':
            return line
        lines: list[str] = []
        while (more := reader.line(_MORE)).strip() != '"""':
            lines.append(more)
        return "\n".join(lines)

    def _take(self, line: str) -> None:
        if not line.startswith("/"):
            return self._ask(line)
        word, _, rest = line[1:].partition(" ")
        if word in KINDS:
            return self._attach(word, rest.strip())
        if word in self._commands:
            return self._commands[word](rest.strip())
        path = _path_and_rest(line)[0]
        if path and Path(path).is_file():  # a file dropped on the terminal
            return self._attach(None, line)
        known = [f"/{name}" for name in (*KINDS, *self._commands, "exit")]
        raise UsageError(seen=f"/{word}", expected=" ".join(known), hint="/help")

    def _ask(self, text: str) -> None:
        self._answer(self.conversation.ask(text))

    def _answer(self, answer: Answer) -> None:
        show_answer(answer, self.verbose)

    def _complete(self, text: str) -> list[str]:
        if text.startswith("/") and "/" not in text[1:]:
            commands = [f"/{name} " for name in (*KINDS, *self._commands, "exit") if f"/{name}".startswith(text)]
            if commands:
                return commands
        start = Path(text).expanduser()
        folder = start if text.endswith("/") else start.parent
        begin = "" if text.endswith("/") else start.name
        try:
            found = sorted(entry for entry in folder.iterdir() if entry.name.startswith(begin))
        except OSError:
            return []
        head = text[: len(text) - len(begin)]
        return [head + entry.name + ("/" if entry.is_dir() else " ") for entry in found]

    # -- commands

    def _attach(self, kind: Kind | None, rest: str) -> None:
        if not rest:
            raise UsageError(seen=f"/{kind} without a path", expected=f"/{kind} PATH")
        path, question = _path_and_rest(rest)
        if path == "-":
            raise UsageError(seen="`-` inside a chat", expected="the path of a file")
        ref = reference(kind, path)
        self.plan.check(ref.kind, ref.origin)
        if self._conversation is None and not self._loading.done():
            self._early.append(ref)
            say(f"({ref.kind} {ref.origin})")
        else:
            say(f"({self.conversation.attach(ref).line()})")
        if question:
            self._ask(question)

    def _media(self, _: str) -> None:
        if self._conversation is None and not self._loading.done():
            lines = [f"{ref.kind} {ref.origin}, not yet looked at" for ref in self._early]
        else:
            lines = [self.conversation.engine.look(ref).line() for ref in self.conversation.media()]
        say("\n".join(lines) or "nothing yet; /image PATH shows something")

    def _undo(self, _: str) -> None:
        say(f"(forgot: {self.conversation.undo().text})")

    def _retry(self, _: str) -> None:
        answer = self.conversation.retry()
        if self.settings.temperature == 0:
            say("(temperature is 0, so the answer will be the same; /set temperature 0.7 varies it)")
        self._answer(answer)

    def _clear(self, _: str) -> None:
        self._early.clear()
        if self._conversation is not None:
            self._conversation.clear()
        say("(a fresh start)")

    def _expert(self, rest: str) -> None:
        name, _, switch = rest.partition(" ")
        if not rest:
            known = ", ".join(registry.names("experts"))
            say(f"on: {', '.join(self.experts.names) or 'none'}; there are {known}, and any package.module:Class")
        elif switch.strip() == "off":
            self.experts.switch_off(name)
            say(f"({name} is off)")
        elif switch.strip() not in ("", "on"):
            raise UsageError(seen=f"/expert {rest}", expected="/expert NAME[:key=value,...] or /expert NAME off")
        else:
            say(f"({self.experts.switch_on(name)} is on)")

    def _set(self, rest: str) -> None:
        values = vars(self.settings)
        if not rest:
            say("\n".join(f"{name} {value}" for name, value in values.items()))
            return
        name, _, text = rest.partition(" ")
        if name not in values:
            raise UsageError(seen=f"no setting {name!r}", expected="one of " + ", ".join(values))
        try:
            value = type(values[name])(text.strip())
        except ValueError:
            kind = "a whole number" if isinstance(values[name], int) else "a number"
            raise UsageError(seen=f"{name} {text.strip() or '(nothing)'}", expected=kind) from None
        self.settings.change(name, value)
        say(f"({name} {value})")

    def _save(self, rest: str) -> None:
        if not rest:
            raise UsageError(seen="/save without a name", expected="/save FILE")
        path = Path(rest).expanduser()
        record = self.conversation.transcript() | {"saved": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(record, file, ensure_ascii=False, indent=1)
                file.write("\n")
        except OSError as error:
            raise UsageError(
                seen=f"{path} was not written: {(error.strerror or str(error)).lower()}",
                expected="a new file in a folder that may be written to",
                hint="give another name",
            ) from error
        say(f"(saved {path})")


def _path_and_rest(text: str) -> tuple[str, str]:
    """A path, quoted or not, and the words after it. A whole line that names a file is the path, blanks and all."""
    if Path(text).expanduser().is_file():
        return text, ""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        path = lexer.get_token() or ""
    except ValueError as error:
        raise UsageError(seen=text, expected="a path; one that begins with a quote must end with it") from error
    return path, lexer.instream.read().strip()
