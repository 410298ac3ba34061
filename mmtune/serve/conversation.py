"""One conversation: history, media waiting to be asked about, settings, answers that stream, undo and retry.

It knows turns and an engine; terminals, browsers and protocols are its callers' business. A turn joins the history only
when its answer has ended, so a failed or abandoned question leaves no trace.

Text that is not the user's own becomes a marked part of the turn, never an instruction, and the transcript shows it.
It comes by `quote`, or from experts: each one that is on is asked about every medium that it has not spoken about yet,
when a question is asked. Whatever becomes of that, the question is answered.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from mmtune.errors import DataError, UsageError
from mmtune.serve.references import reference
from mmtune.serve.text import TextStream
from mmtune.types import MediaRef, Part, Quote, Sample, Turn

if TYPE_CHECKING:
    from pathlib import Path

    from mmtune.experts._runner import Finding
    from mmtune.serve.engine import Engine, MediaUse, Prompt
    from mmtune.serve.experts import Panel, Told

Finish = Literal["waiting", "stop", "length", "interrupted"]


@dataclass
class Settings:
    """How answers are drawn."""

    max_tokens: int = 256
    """Longest answer in tokens."""
    temperature: float = 0.0
    """0 takes the likeliest token each time; higher is more varied."""
    seed: int = 0
    """Makes a drawn answer repeatable; has no effect at temperature 0."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            self.change(name, value)

    def change(self, name: str, value: float) -> None:
        """Set one by its name.

        Raises:
            UsageError: the value is out of range; the setting stays as it is.
        """
        lowest = 1 if name == "max_tokens" else 0
        if not lowest <= value < 2**63:  # refuses NaN too
            raise UsageError(seen=f"{name} {value}", expected=f"at least {lowest}")
        setattr(self, name, value)


@dataclass
class Answer:
    """One answer on its way: iterate over it for the pieces of text; the numbers are filled in meanwhile.

    Closing the iteration early (`close`, or Ctrl-C inside it) keeps what was said so far.
    """

    _run: Iterator[str] = field(repr=False, default=iter(()))
    text: str = ""
    finish: Finish = "waiting"
    prompt_tokens: int = 0
    """Places of the prompt, media included."""
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

    def __iter__(self) -> Iterator[str]:
        return self._run

    def whole(self) -> str:
        """The answer when it has ended."""
        for _ in self:
            pass
        return self.text

    def close(self) -> None:
        """Stop here; the conversation keeps the text so far."""
        self._run.close()  # type: ignore[attr-defined]

    def record(self) -> dict[str, Any]:
        """Everything about the answer as plain data."""
        spoken = self.total_seconds - self.first_seconds
        return {
            "answer": self.text,
            "finish": self.finish,
            "tokens": {
                "prompt": self.prompt_tokens,
                "media": sum(use.places for use in self.media),
                "answer": self.answer_tokens,
            },
            "seconds": {
                "prepare": round(self.prepare_seconds, 4),
                "first_token": round(self.first_seconds, 4),
                "total": round(self.total_seconds, 4),
            },
            "tokens_per_second": round((self.answer_tokens - 1) / spoken, 2) if self.answer_tokens > 1 else None,
            "media": [use.record() for use in self.media],
            "experts": [finding.record() for finding in self.experts],
            "exchanges_left_out": self.left_out,
        }


class Conversation:
    """History and settings of one exchange with one engine.

    Args:
        engine: a loaded run.
        system: text of a system turn before everything else; none for no such turn.
        settings: how answers are drawn.
        experts: who is asked about media; none for nobody.
    """

    def __init__(
        self,
        engine: Engine,
        system: str | None = None,
        settings: Settings | None = None,
        experts: Panel | None = None,
    ) -> None:
        self.engine = engine
        self.system = system
        self.settings = settings or Settings()
        self.experts = experts
        self.turns: list[Turn] = []
        self.waiting: list[MediaRef | Quote] = []
        self._looked: dict[MediaRef, MediaUse] = {}  # what attaching cost, for the answer that it is for
        self._told: list[tuple[Turn, Told]] = []  # what experts have said, and in which turn

    # -- what the next question is about

    def attach(self, ref: MediaRef | Path | str) -> MediaUse:
        """Put a medium in front of the next question. It is decoded and encoded now, once for the conversation.

        Args:
            ref: a reference, or a file whose kind is told by its content.

        Raises:
            UsageError: no branch of the run takes this kind of media.
            MediaError: the file cannot be decoded.
        """
        if not isinstance(ref, MediaRef):
            ref = reference(None, str(ref))
        use = self.engine.look(ref)
        self._looked.setdefault(ref, use)
        self.waiting.append(ref)
        return use

    def quote(self, quote: Quote) -> None:
        """Put text from elsewhere in front of the next question, as marked data."""
        self.waiting.append(quote)

    # -- questions and answers

    def ask(self, text: str) -> Answer:
        """Ask about the waiting media and everything before.

        Nothing is computed before the answer is iterated over.

        Raises:
            UsageError: the question is empty.
        """
        if not text.strip():
            raise UsageError(seen="an empty question", expected="some words", hint="type what you want to know")
        return self._answer(Turn("user", (*self.waiting, text)), waiting=list(self.waiting))

    def retry(self) -> Answer:
        """Forget the last answer and answer the same question again, with the next seed."""
        self._need_turns("nothing to answer again")
        self.settings.seed += 1
        return self._answer(self.turns[-2], replaced=self.turns[-2:])

    def undo(self) -> Turn:
        """Forget the last question with its answer; returns the question. Its media are not put back."""
        self._need_turns("nothing to undo")
        question = self.turns[-2]
        del self.turns[-2:]
        return question

    def clear(self) -> None:
        """Forget every turn and every waiting medium; settings and the system text stay."""
        self.turns.clear()
        self.waiting.clear()
        self._looked.clear()

    # -- looking at it

    def sample(self, question: Turn | None = None) -> Sample:
        """History and question as the processor gets them; the assistant's answer is left open."""
        head = (Turn("system", (self.system,)),) if self.system else ()
        tail = (question,) if question else ()
        return Sample("chat", (*head, *self.turns, *tail))

    def rendered(self) -> str:
        """The exact prompt that the next question would continue, media places marked."""
        return self.engine.rendered(self.sample(Turn("user", tuple(self.waiting))))

    def media(self) -> list[MediaRef]:
        """All media of the history, then the waiting ones."""
        told = [part for turn in self.turns for part in turn.parts if isinstance(part, MediaRef)]
        return told + [part for part in self.waiting if isinstance(part, MediaRef)]

    def transcript(self) -> dict[str, Any]:
        """The conversation as plain data: text in full, media by origin and digest."""
        return {
            "run": str(self.engine.run),
            "system": self.system,
            "settings": vars(self.settings).copy(),
            "turns": [
                {"role": turn.role, "parts": [_plain(part) for part in turn.parts]} for turn in self.sample().turns
            ],
        }

    # -- inside

    def _need_turns(self, seen: str) -> None:
        if len(self.turns) < 2:
            raise UsageError(seen=seen, expected="at least one question with its answer", hint="ask something first")

    def _answer(
        self, question: Turn, waiting: Sequence[MediaRef | Quote] = (), replaced: Sequence[Turn] = ()
    ) -> Answer:
        answer = Answer()
        answer._run = self._stream(answer, question, waiting, replaced)
        return answer

    def _stream(
        self, answer: Answer, question: Turn, waiting: Sequence[MediaRef | Quote], replaced: Sequence[Turn]
    ) -> Iterator[str]:
        del self.waiting[: len(waiting)]
        del self.turns[len(self.turns) - len(replaced) :]
        start = time.perf_counter()
        settings = self.settings
        done = False
        try:
            question, told = self._advised(question, answer)
            begin = time.perf_counter()
            prompt, question = self._prompt(question, answer)
            answer.prompt_tokens, answer.left_out = prompt.tokens, prompt.left_out
            answer.media = tuple(self._looked.pop(use.ref, use) for use in prompt.media)
            answer.prepare_seconds = time.perf_counter() - begin
            text = TextStream(self.engine.decode)
            finish: Finish = "stop"
            for token in self.engine.stream(prompt, settings.max_tokens, settings.temperature, settings.seed):
                answer.answer_tokens += 1
                if answer.answer_tokens == 1:
                    answer.first_seconds = time.perf_counter() - start
                piece = text.push(token)
                if not answer.text:
                    piece = piece.lstrip()  # many tokenizers begin a text with a blank
                answer.text += piece
                answer.total_seconds = time.perf_counter() - start
                if piece:
                    yield piece
            if answer.answer_tokens >= settings.max_tokens:
                finish = "length"
            piece = text.flush()
            answer.text += piece
            answer.finish, done = finish, True
            if piece:
                yield piece
        except (KeyboardInterrupt, GeneratorExit):
            if not done:
                answer.finish, done = "interrupted", bool(answer.text.strip())
            raise
        finally:
            answer.total_seconds = time.perf_counter() - start
            if done:
                self.turns += [question, Turn("assistant", (answer.text,))]
                self._told.append((question, told))
            else:
                self.turns += replaced
                self.waiting[:0] = waiting

    def _advised(self, question: Turn, answer: Answer) -> tuple[Turn, Told]:
        """The question with what experts say about its media and earlier ones, and a note of who has spoken."""
        kept = [question, *self.turns]
        self._told = [(turn, told) for turn, told in self._told if any(turn is one for one in kept)]
        here = frozenset[Any]().union(*(told for turn, told in self._told if turn is question))
        if not self.experts:
            return question, here
        from mmtune.serve.experts import with_quotes

        before = frozenset[Any]().union(*(told for _, told in self._told))
        refs = [ref for turn in (*self.turns, question) for ref in turn.media]
        findings = self.experts.hear(refs, question.text, before)
        answer.experts = tuple(findings)
        return with_quotes(question, findings), here | self.experts.told(findings, question.text)

    def _prompt(self, question: Turn, answer: Answer) -> tuple[Prompt, Turn]:
        """The prompt; without what experts said if it cannot be made with it, such as for its length."""
        try:
            return self.engine.prompt(self.sample(question)), question
        except DataError as error:
            said = [finding.quote for finding in answer.experts if finding.quote]
            if not said:
                raise
            parts = (part for part in question.parts if not any(part is one for one in said))
            bare = replace(question, parts=tuple(parts))
            prompt = self.engine.prompt(self.sample(bare))
            note = f"what it said cannot be used ({error.reason})"
            answer.experts = tuple(one.left_out(note) if one.quote else one for one in answer.experts)
            return prompt, bare


def _plain(part: Part) -> dict[str, str]:
    match part:
        case MediaRef():
            clip = {"range": part.range} if part.range else {}
            return {"kind": part.kind, "origin": part.origin, "sha256": part.digest, **clip}
        case Quote():
            return {"kind": "quote", "source": part.source, "text": part.text}
        case _:
            return {"kind": "text", "text": part}
