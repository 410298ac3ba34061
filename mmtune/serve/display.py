"""An answer on its way to the person: text to stdout as it comes, everything about it to stderr."""

from __future__ import annotations

import sys

from mmtune.serve.answer import Answer
from mmtune.serve.terminal import say
from mmtune.serve.text import printable


def show_answer(answer: Answer, verbose: bool) -> bool:
    """Stream an answer to stdout; Ctrl-C ends it. Returns whether it was interrupted."""
    clean = printable if sys.stdout.isatty() else str
    interrupted = told = False
    try:
        for piece in answer:
            if not told:
                told = say_findings(answer)
            sys.stdout.write(clean(piece))
            sys.stdout.flush()
    except KeyboardInterrupt:
        answer.close()
        answer.stopped()
        interrupted = True
    sys.stdout.write("\n")
    sys.stdout.flush()
    if not told:
        say_findings(answer)
    if interrupted:
        say("(stopped)")
    say_remarks(answer, verbose)
    return interrupted


def say_findings(answer: Answer) -> bool:
    """Say what experts found, and which failed."""
    for finding in answer.experts:
        say(f"({finding.line()})")
    return True


def say_remarks(answer: Answer, verbose: bool) -> None:
    """Say what a person should know of an answer that has ended."""
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
