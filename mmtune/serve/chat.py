"""`mmtune chat`: a conversation at the terminal, or one answer in a pipe.

With a question it answers and leaves; without one it reads questions until Ctrl-D. stdout carries answers only,
everything else goes to stderr, so that the command can stand in a pipe.
"""

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmtune.errors import UsageError
from mmtune.serve import arguments, conversation_file, run_info, transcript
from mmtune.serve.conversation import Conversation
from mmtune.serve.display import say_findings, say_remarks, show_answer
from mmtune.serve.experts import Panel, brief
from mmtune.serve.questions import beside, piped, readable
from mmtune.serve.settings import Settings
from mmtune.serve.terminal import is_terminal, say
from mmtune.serve.text import printable
from mmtune.types import Kind, Quote


@dataclass
class Options:
    """What the command line said."""

    words: list[str] = field(default_factory=list)
    """[RUN] [FILE [RANGE]]... [QUESTION]; no run takes the small model inside the package."""
    media: list[tuple[Kind | None, str]] = field(default_factory=list)
    """Kind (None: detect it by content) and path (`-`: standard input)."""
    go_on: bool = False
    """Continue the last conversation."""
    experts: list[str] = field(default_factory=list)
    """NAME[:key=value,...], beside those of the recipe."""
    no_experts: bool = False
    """Leave those of the recipe out, and do not mention them."""
    experts_of_run: bool = False
    """Turn on those that the recipe of the run names."""
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    device: str = "auto"
    stream: bool = True
    json: bool = False
    verbose: bool = False


def command(options: Options) -> int:
    """`mmtune chat`; returns the exit code.

    Raises:
        UsageError: no run, no question, or a kind of media that the run does not take (before weights are read).
        ConfigError: no expert of that name, or an option that it has not (before weights are read).
        MmtuneError: whatever reading the run or the media raises.
    """
    words = arguments.parse(options.words, options.media)
    saved = conversation_file.last() if options.go_on else None
    info = run_info.RunInfo.read(_run(words.run, saved), device=options.device)
    for ref in words.media:
        info.check(ref.kind, ref.origin)
    if options.system is not None:
        options.system = readable(options.system, "the system text")
    settings = _settings(options, info, saved)
    panel = Panel(options.experts, of_run=_of_run(info, options), limits=info.limits)
    question = words.question if words.question is not None else _piped_question(options)
    if info.notice:
        say(f"{info.name}: {info.notice}")
    for address in words.unread:
        say(f"({address} is not read: a chat fetches nothing)")
    if words.note:
        say(f"({words.note})")
    if question is None:
        from mmtune.serve.repl import Repl

        return Repl(info, words.media, options.system, settings, options.verbose, panel, saved).run()
    question = readable(question)
    start = time.perf_counter()
    conversation = Conversation(run_info.to_stay(info.load), options.system, settings, panel)
    loaded = time.perf_counter() - start
    if saved is not None:
        for note in conversation.restore(saved, info.check):
            say(f"({note})")
    if words.question is not None:
        _take_piped(conversation, info, options)
    for ref in words.media:
        conversation.attach(ref)
    return _one_answer(conversation, question, options, loaded)


def _of_run(info: run_info.RunInfo, options: Options) -> tuple[dict[str, Any], ...]:
    """The recipe's experts that are on; the author of the recipe is often not the person who runs it."""
    if options.no_experts or not info.experts:
        return ()
    if options.experts_of_run or info.packaged:
        return info.experts
    say(f"(experts that the run names are off: {brief(info.experts)}; --experts-of-run turns them on)")
    return ()


def _run(named: Path | None, saved: transcript.Saved | None) -> Path:
    """The run that answers: the one named, else that of the conversation, else the package's own."""
    if named is not None:
        return named
    if saved is None or saved.run is None:
        return run_info.packaged_run()
    if not (Path(saved.run) / "recipe.yaml").is_file():
        raise UsageError(
            seen=f"the last conversation was with {saved.run}, and there is no run there any more",
            expected="the folder of a run",
            hint="mmtune chat RUN -c continues it with another run",
        )
    return Path(saved.run)


def _settings(options: Options, info: run_info.RunInfo, saved: transcript.Saved | None) -> Settings:
    """The setting of the command line, else of the conversation, else of the recipe."""
    values = {"max_tokens": info.max_tokens, "temperature": info.temperature, "seed": 0}
    if saved is not None:
        values |= saved.settings
        if options.system is not None:
            saved.system = options.system
    said = {"max_tokens": options.max_tokens, "temperature": options.temperature, "seed": options.seed}
    values |= {name: value for name, value in said.items() if value is not None}
    if saved is not None:
        saved.settings = values
    return Settings(**values)


def _take_piped(conversation: Conversation, info: run_info.RunInfo, options: Options) -> None:
    """Put text that is piped in before the question, and print a note."""
    if any(path == "-" for _, path in options.media):
        return
    more = beside()
    if isinstance(more, Quote):
        conversation.quote(more)
        say(f"(standard input: {len(more.text)} characters, quoted before the question)")
    elif more is not None:
        info.check(more.kind, more.origin)
        say(f"({conversation.attach(more).line()})")


def _one_answer(conversation: Conversation, question: str, options: Options, loaded: float) -> int:
    store = conversation_file.ConversationFile()
    answer = conversation.ask(question)
    interrupted = False
    if options.stream and not options.json:
        interrupted = show_answer(answer, options.verbose)
    else:
        answer.whole()
        say_findings(answer)
        if options.json:
            record = answer.record() | {"run": str(conversation.engine.run), "question": question}
            record["seconds"] |= {"load": round(loaded, 4)}
            print(json.dumps(record, ensure_ascii=(sys.stdout.encoding or "").lower() not in ("utf-8", "utf8")))
        else:
            print(printable(answer.text) if sys.stdout.isatty() else answer.text)
        say_remarks(answer, options.verbose)
    store.keep(conversation)
    return 130 if interrupted else 0


def _piped_question(options: Options) -> str | None:
    """The question on standard input; None at a terminal."""
    if any(path == "-" for _, path in options.media):
        raise UsageError(
            seen="media on standard input and no question",
            expected="a question as an argument, because standard input is taken",
            hint='cat foo.jpg | mmtune chat --image - "What is this?"',
        )
    if sys.stdin.isatty():
        if is_terminal() and not options.json:
            return None
        raise UsageError(
            seen="no question, and the answer does not go to a terminal",
            expected="a question as an argument or on standard input",
            hint='mmtune chat --image foo.jpg "What is this?"',
        )
    text = piped()
    if not text:
        raise UsageError(
            seen="no question: nothing was typed and standard input is empty",
            expected="a question as an argument or on standard input",
            hint='echo "What is this?" | mmtune chat --image foo.jpg',
        )
    return text
