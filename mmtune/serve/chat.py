"""`mmtune chat`: a conversation at the terminal, or one answer in a pipe.

With a question it answers and leaves; without one it reads questions until Ctrl-D. stdout carries answers only,
everything else goes to stderr, so that the command can stand in a pipe.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmtune import registry
from mmtune.errors import UsageError
from mmtune.serve import plan as plans
from mmtune.serve.conversation import Answer, Conversation, Settings
from mmtune.serve.experts import Panel, Spec, brief
from mmtune.serve.references import reference
from mmtune.serve.terminal import is_terminal, say
from mmtune.serve.text import printable
from mmtune.types import Kind


@dataclass
class Options:
    """What the command line said."""

    run: Path | None = None
    """Run folder; none takes the small model inside the package."""
    question: str | None = None
    media: list[tuple[Kind | None, str]] = field(default_factory=list)
    """Kind (none: look at the content) and path (`-`: standard input)."""
    experts: list[str] = field(default_factory=list)
    """NAME[:key=value,...], beside those of the recipe."""
    no_experts: bool = False
    """Leave those of the recipe out, and do not mention them."""
    experts_of_run: bool = False
    """Turn on those that the recipe of the run names."""
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    seed: int = 0
    device: str = "auto"
    stream: bool = True
    json: bool = False
    verbose: bool = False


def chat(
    run: Path | str | None = None,
    system: str | None = None,
    device: str = "auto",
    settings: Settings | None = None,
    experts: Sequence[Spec] | Literal["of_run"] = (),
    allow_code: Sequence[str] = (),
) -> Conversation:
    """A conversation with a run, for Python: `talk = mmtune.chat("runs/one")`, then `attach` and `ask`.

    Args:
        run: run folder; none takes the small model inside the package.
        system: text of a system turn.
        device: auto, cpu, cuda, ...
        settings: how answers are drawn; the recipe's own when none are given.
        experts: who else looks at the media, as ["ocr"]; "of_run" for those that the recipe of the run names.
        allow_code: classes outside mmtune that the run may import, see `mmtune.registry.allow`.

    Raises:
        MmtuneError: whatever reading the run raises, or an expert that there is not.
    """
    registry.allow(allow_code)
    plan = plans.Plan.read(Path(run) if run is not None else plans.packaged_run(), device=device)
    settings = settings or Settings(max_tokens=plan.max_tokens, temperature=plan.temperature)
    if experts == "of_run":
        panel = Panel(of_run=plan.experts)
    else:
        panel = Panel(experts)
        if plan.experts and not experts:
            say(f"(experts that the run names are off: {brief(plan.experts)}; experts='of_run' turns them on)")
    return Conversation(plan.load(), system, settings, panel)


def command(options: Options) -> int:
    """`mmtune chat`; returns the exit code.

    Raises:
        UsageError: no run, no question, or a kind of media that the run does not take (before weights are read).
        ConfigError: no expert of that name, or an option that it has not (before weights are read).
        MmtuneError: whatever reading the run or the media raises.
    """
    run = options.run or plans.packaged_run()
    plan = plans.Plan.read(run, device=options.device)
    refs = [reference(kind, path) for kind, path in options.media]
    for ref in refs:
        plan.check(ref.kind, ref.origin)
    settings = Settings(
        max_tokens=options.max_tokens or plan.max_tokens,
        temperature=plan.temperature if options.temperature is None else options.temperature,
        seed=options.seed,
    )
    panel = Panel(options.experts, of_run=_of_run(plan, options))
    question = options.question if options.question is not None else _piped_question(options)
    if plan.notice:
        say(f"{plan.name}: {plan.notice}")
    if question is None:
        from mmtune.serve.repl import Repl

        return Repl(plan, refs, options.system, settings, options.verbose, panel).run()
    start = time.perf_counter()
    conversation = Conversation(plans.to_stay(plan.load), options.system, settings, panel)
    loaded = time.perf_counter() - start
    for ref in refs:
        conversation.attach(ref)
    return _one_answer(conversation, question, options, loaded)


def _of_run(plan: plans.Plan, options: Options) -> tuple[dict[str, Any], ...]:
    """Those of the recipe's experts that are on: whoever wrote the recipe is seldom who runs it."""
    if options.no_experts or not plan.experts:
        return ()
    if options.experts_of_run or plan.packaged:
        return plan.experts
    say(f"(experts that the run names are off: {brief(plan.experts)}; --experts-of-run turns them on)")
    return ()


def show_answer(answer: Answer, verbose: bool) -> bool:
    """Stream an answer to stdout; Ctrl-C ends it. Returns whether it was interrupted."""
    clean = printable if sys.stdout.isatty() else str
    interrupted = told = False
    try:
        for piece in answer:
            if not told:
                told = _findings(answer)
            sys.stdout.write(clean(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        answer.close()
        answer.finish = "interrupted"
        interrupted = True
    sys.stdout.write("\n")
    sys.stdout.flush()
    if not told:
        _findings(answer)
    if interrupted:
        say("(stopped)")
    _remarks(answer, verbose)
    return interrupted


def _findings(answer: Answer) -> bool:
    """Say what experts found, and which failed."""
    for finding in answer.experts:
        say(f"({finding.line()})")
    return True


def _remarks(answer: Answer, verbose: bool) -> None:
    if answer.finish == "length":
        say(f"(cut after {answer.answer_tokens} tokens; a larger max_tokens lets it go on)")
    if answer.left_out:
        say(f"(too long for the model: the first {answer.left_out} exchanges were left out)")
    if verbose:
        say(summary(answer))


def summary(answer: Answer) -> str:
    """One line of numbers about an answer."""
    record = answer.record()
    tokens, seconds, rate = record["tokens"], record["seconds"], record["tokens_per_second"]
    speed = f", {rate:g} tokens/s" if rate else ""
    return (
        f"[prompt {tokens['prompt']} tokens, {tokens['media']} of them media; answer {tokens['answer']} tokens; "
        f"first after {seconds['first_token']:.2f} s{speed}]"
    )


def _one_answer(conversation: Conversation, question: str, options: Options, loaded: float) -> int:
    answer = conversation.ask(question)
    if options.stream and not options.json:
        return 130 if show_answer(answer, options.verbose) else 0
    answer.whole()
    _findings(answer)
    if options.json:
        record = answer.record() | {"run": str(conversation.engine.run), "question": question}
        record["seconds"] |= {"load": round(loaded, 4)}
        print(json.dumps(record, ensure_ascii=False))
    else:
        print(printable(answer.text) if sys.stdout.isatty() else answer.text)
    _remarks(answer, options.verbose)
    return 0


def _piped_question(options: Options) -> str | None:
    """The question on standard input; none when a person is there to be asked."""
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
    text = sys.stdin.read().strip()
    if not text:
        raise UsageError(
            seen="no question: nothing was typed and standard input is empty",
            expected="a question as an argument or on standard input",
            hint='echo "What is this?" | mmtune chat --image foo.jpg',
        )
    return text
