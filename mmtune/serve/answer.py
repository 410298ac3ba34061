"""One answer: its text in pieces as they come, or as a whole, and the numbers about it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mmtune.experts._runner import Finding
    from mmtune.serve.engine import MediaUse

Finish = Literal["waiting", "stop", "length", "interrupted"]


@dataclass
class Facts:
    """The facts known about an answer so far; the engine that makes the answer fills them in."""

    text: str = ""
    finish: Finish = "waiting"
    prompt_tokens: int = 0
    """Positions of the prompt, media included."""
    answer_tokens: int = 0
    media: tuple[MediaUse, ...] = ()
    experts: tuple[Finding, ...] = ()
    """What experts found for this question, failures too."""
    left_out: int = 0
    """Oldest exchanges that did not fit into the prompt any more; the history keeps them."""
    prepare_seconds: float = 0.0
    """Rendering the prompt; media cost what `media` says, when they were attached."""
    first_seconds: float = 0.0
    """From the question to the first token, experts included."""
    total_seconds: float = 0.0


class Answer:
    """An answer that comes when it is wanted.

    Iterate over it for the pieces of text as they are said. Anything else that is read of it (`text`, `print(answer)`,
    a field of `Facts`) waits for the whole first, unless the iteration has begun: then it gives the part known so far.

    Closing it early (`close`, or Ctrl-C inside the iteration) keeps what was said so far.
    """

    text: str
    finish: Finish
    prompt_tokens: int
    answer_tokens: int
    media: tuple[MediaUse, ...]
    experts: tuple[Finding, ...]
    left_out: int
    prepare_seconds: float
    first_seconds: float
    total_seconds: float

    def __init__(self, run: Iterator[str] = iter(()), facts: Facts | None = None) -> None:
        self._run = run
        self._facts = facts or Facts()
        self._begun = False
        self._read = False  # as a whole, before anybody iterated

    def __iter__(self) -> Iterator[str]:
        if self._read:
            return iter((self._facts.text,))
        self._begun = True
        return self._run

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in Facts.__dataclass_fields__:
            raise AttributeError(f"an answer has no {name!r}; it has {', '.join(Facts.__dataclass_fields__)}")
        return getattr(self._known(), name)

    def __str__(self) -> str:
        return self._known().text

    def __repr__(self) -> str:
        return f"<Answer {self._facts.text!r}, {self._facts.finish}>"

    def _repr_pretty_(self, printer: Any, _: bool) -> None:
        """A notebook shows the text of an answer that is the last value of a cell."""
        printer.text(str(self))

    def whole(self) -> str:
        """The text when it has ended."""
        self._read = self._read or not self._begun
        self._begun = True
        for _ in self._run:
            pass
        return self._facts.text

    def close(self) -> None:
        """Stop here; the conversation keeps the text so far."""
        self._begun = True
        self._run.close()  # type: ignore[attr-defined]

    def settle(self) -> None:
        """Let the conversation continue: complete the answer if it was not read yet, else stop it where it is."""
        if self._begun:
            self.close()
        else:
            self.whole()

    def stopped(self) -> None:
        """Note that a person stopped it, also where nothing had been said yet."""
        self._facts.finish = "interrupted"

    def record(self) -> dict[str, Any]:
        """Everything about the answer as plain data."""
        facts = self._known()
        spoken = facts.total_seconds - facts.first_seconds
        return {
            "answer": facts.text,
            "finish": facts.finish,
            "tokens": {
                "prompt": facts.prompt_tokens,
                "media": sum(use.tokens for use in facts.media),
                "answer": facts.answer_tokens,
            },
            "seconds": {
                "prepare": round(facts.prepare_seconds, 4),
                "first_token": round(facts.first_seconds, 4),
                "total": round(facts.total_seconds, 4),
            },
            "tokens_per_second": round((facts.answer_tokens - 1) / spoken, 2) if facts.answer_tokens > 1 else None,
            "media": [use.record() for use in facts.media],
            "experts": [finding.record() for finding in facts.experts],
            "exchanges_left_out": facts.left_out,
        }

    def _known(self) -> Facts:
        if not self._begun:
            self.whole()
        return self._facts
