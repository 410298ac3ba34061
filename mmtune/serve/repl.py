"""Questions and answers at a terminal: commands that begin with a slash, everything else is a question.

The weights are read by a thread while the person types the first question.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mmtune import registry
from mmtune.errors import MmtuneError, UsageError
from mmtune.serve import drops, transcript
from mmtune.serve.answer import Answer
from mmtune.serve.complete import complete
from mmtune.serve.conversation import Conversation
from mmtune.serve.conversation_file import ConversationFile
from mmtune.serve.display import show_answer
from mmtune.serve.experts import Panel
from mmtune.serve.loading import Loading
from mmtune.serve.questions import readable
from mmtune.serve.settings import Settings
from mmtune.serve.terminal import Reader, say
from mmtune.types import KINDS, Kind, MediaRef

if TYPE_CHECKING:
    from mmtune.serve.run_info import RunInfo

PROMPT = ">>> "
_MORE = "... "

HELP = """\
/image PATH   /video PATH   /audio PATH   /points PATH
                 put a file before the next question; words after the path are the question.
                 A range may follow a clip: /video clip.mp4 00:10-00:20
                 A file that is dropped here, or named in a question, is put before it too.
/media           what has been shown so far
/undo            forget the last question and its answer; what it was about waits again
/retry           answer the last question again
/clear           forget everything said and shown
/expert          list the experts;  /expert ocr  or  /expert ocr:frames=8  adds one,
                 /expert ocr off  takes it away
/set             list the settings;  /set temperature 0.5  changes one
/show            the exact prompt, with the media tokens
/save FILE       write the conversation as JSON
/load FILE       continue a saved one; `mmtune chat -c` continues the last
/help            this list
/exit            leave (so does Ctrl-D); Ctrl-C stops an answer
\"\"\" on a line of its own begins and ends a question of several lines."""


class Repl:
    """The loop over lines.

    Args:
        info: the run that answers, not yet loaded.
        refs: media named on the command line, kinds already checked.
        system: text of the system turn, or none.
        settings: how answers are drawn.
        verbose: numbers after every answer.
        experts: who is asked about media.
        saved: a conversation to continue with.
    """

    def __init__(
        self,
        info: RunInfo,
        refs: list[MediaRef],
        system: str | None,
        settings: Settings,
        verbose: bool = False,
        experts: Panel | None = None,
        saved: transcript.Saved | None = None,
    ) -> None:
        self.info = info
        self.settings = settings
        self.system = system
        self.verbose = verbose
        self.experts = Panel() if experts is None else experts
        self._early = list(refs)
        self._saved = saved
        self._loading = Loading(lambda: info.load(decoders=True))
        self._conversation_file = ConversationFile()
        self._conversation: Conversation | None = None
        self._commands: dict[str, Callable[[str], None]] = {
            **{kind: lambda rest, kind=kind: self._attach(kind, rest) for kind in KINDS},
            "media": self._media,
            "undo": self._undo,
            "retry": self._retry,
            "clear": self._clear,
            "expert": self._expert,
            "set": self._set,
            "show": lambda _: say(self.conversation.rendered()),
            "save": self._save,
            "load": self._load,
            "help": lambda _: say(HELP),
        }

    @property
    def conversation(self) -> Conversation:
        """The conversation; the first use waits for the weights and encodes the media given so far."""
        if self._conversation is None:
            made = Conversation(self._loading.result(), self.system, self.settings, self.experts)
            if self._saved is not None:
                self._restore(made, self._saved)
            self._conversation = made  # only now: Ctrl-C until here loses nothing
        while self._early:
            try:
                self._conversation.attach(self._early[0])
            except MmtuneError:
                del self._early[0]
                raise
            del self._early[0]
        return self._conversation

    def run(self) -> int:
        """Read, answer, until Ctrl-D or /exit. Returns the exit code 0."""
        reader = Reader(self._complete)
        say(f"Takes {', '.join(('text', *self.info.kinds))}. /help lists the commands, Ctrl-D leaves.")
        if self._saved is not None:
            say(f"(going on: {self._saved.summary()})")
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
                    if self._loading.failed(error):
                        raise  # nothing can be answered without weights
                    say(str(error))
                if self._conversation is not None:
                    self._conversation_file.keep(self._conversation)
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
        word, _, rest = line[1:].partition(" ")
        if line.startswith("/") and word in self._commands:
            return self._commands[word](rest.strip())
        if not line.startswith("/"):
            return self._ask(drops.media_in(line))
        if drops.begins_with_path(line):  # a file dropped on the terminal
            return self._ask(drops.path_first(None, line))
        known = [f"/{name}" for name in (*self._commands, "exit")]
        raise UsageError(seen=f"/{word}", expected=" ".join(known), hint="/help")

    def _ask(self, typed: drops.Typed) -> None:
        """Put the media before the next question, and ask it if there is one."""
        for ref in typed.media:
            self.info.check(ref.kind, ref.origin)
        for ref in typed.media:
            self._show(ref)
        for address in typed.unread:
            say(f"({address} is not read: a chat fetches nothing)")
        if typed.question:
            self._answer(self.conversation.ask(readable(typed.question)))

    def _answer(self, answer: Answer) -> None:
        show_answer(answer, self.verbose)

    def _complete(self, line: str, begin: int) -> list[str]:
        words = dict.fromkeys(self._commands) | {"exit": None}
        words |= {"expert": lambda: registry.names("experts"), "set": lambda: list(vars(self.settings))}
        return complete(line, begin, words)

    # -- commands

    def _attach(self, kind: Kind, rest: str) -> None:
        if not rest:
            raise UsageError(seen=f"/{kind} without a path", expected=f"/{kind} PATH")
        if rest == "-" or rest.startswith("- "):
            raise UsageError(seen="`-` inside a chat", expected="the path of a file")
        self._ask(drops.path_first(kind, rest))

    def _show(self, ref: MediaRef) -> None:
        if self._conversation is None and not self._loading.done():
            self._early.append(ref)
            say(f"({ref.kind} {ref.origin}{ref.range})")
        else:
            say(f"({self.conversation.attach(ref).line()})")

    def _media(self, _: str) -> None:
        if self._conversation is None and self._saved is None and not self._loading.done():
            lines = [f"{ref.kind} {ref.origin}{ref.range}, not yet encoded" for ref in self._early]
        else:
            lines = [self.conversation.engine.look(ref).line() for ref in self.conversation.media()]
        say("\n".join(lines) or "nothing yet; /image PATH shows something")

    def _undo(self, _: str) -> None:
        question = self.conversation.undo()
        say(f"(forgot: {question.text})")
        for ref in question.media:
            say(f"({ref.kind} {ref.origin}{ref.range} waits for the next question)")

    def _retry(self, _: str) -> None:
        answer = self.conversation.retry()
        if self.settings.temperature == 0:
            say("(temperature is 0, so the answer will be the same; /set temperature 0.7 varies it)")
        self._answer(answer)

    def _clear(self, _: str) -> None:
        self._early.clear()
        self._saved = None
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
        if not rest:
            say("\n".join(f"{name} {value}" for name, value in vars(self.settings).items()))
            return
        name, _, text = rest.partition(" ")
        self.settings.read(name, text)
        say(f"({name} {vars(self.settings)[name]})")

    def _save(self, rest: str) -> None:
        if not rest:
            raise UsageError(seen="/save without a name", expected="/save FILE")
        path = Path(drops.whole_path(rest)).expanduser()
        record = self.conversation.transcript() | {"saved": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        try:
            with path.open("xb") as file:
                file.write(transcript.dumps(record))
        except OSError as error:
            raise UsageError(
                seen=f"{path} was not written: {(error.strerror or str(error)).lower()}",
                expected="a new file in a folder that may be written to",
                hint="give another name",
            ) from error
        say(f"(saved {path})")

    def _load(self, rest: str) -> None:
        if not rest:
            raise UsageError(seen="/load without a name", expected="/load FILE, which /save wrote")
        path = Path(drops.whole_path(rest)).expanduser()
        saved = transcript.read(path)
        self._early.clear()
        self._saved = None
        self._restore(self.conversation, saved)
        say(f"(loaded {path}: {saved.summary()})")

    def _restore(self, conversation: Conversation, saved: transcript.Saved) -> None:
        for note in conversation.restore(saved, self.info.check):
            say(f"({note})")
