"""One conversation: history, media waiting to be asked about, settings, answers that stream, undo and retry.

It handles turns and an engine; terminals, browsers and protocols are left to its callers. A turn joins the history only
when its answer has ended, so a failed or abandoned question leaves no trace.

Text that is not the user's own becomes a marked part of the turn, never an instruction, and the transcript shows it.
It comes by `quote`, or from experts: each one that is on is asked about every medium that it has not spoken about yet,
when a question is asked. Whatever becomes of that, the question is answered.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mmtune.errors import DataError, UsageError
from mmtune.serve import transcript
from mmtune.serve.answer import Answer, Facts, Finish
from mmtune.serve.settings import Settings
from mmtune.serve.text import TextStream
from mmtune.types import Kind, MediaRef, Quote, Sample, Turn

if TYPE_CHECKING:
    from mmtune.serve.engine import Engine, MediaUse, Prompt
    from mmtune.serve.experts import Panel, Told

__all__ = ["Answer", "Conversation", "Settings"]


@dataclass(frozen=True)
class _Asked:
    """What belongs to a question of the history, beside its turn."""

    question: Turn
    given: tuple[MediaRef | Quote, ...]
    """Media and quotes that the user put before it; experts may have added more."""
    told: Told
    """What experts have said about it."""


class Conversation:
    """History and settings of one exchange with one engine.

    Args:
        engine: a loaded run.
        system: text of a system turn before everything else; none for no such turn.
        settings: how answers are drawn.
        experts: the panel that is asked about media; None for no experts.
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
        self._turns: list[Turn] = []
        self._waiting: list[MediaRef | Quote] = []
        self._looked: dict[MediaRef, MediaUse] = {}  # what attaching cost, for the answer that it is for
        self._asked: list[_Asked] = []
        self._open: Answer | None = None  # the last one, perhaps not read yet

    def __repr__(self) -> str:
        return f"<Conversation of {sum(turn.role == 'user' for turn in self._turns)} questions: ask(), attach(), turns>"

    @property
    def turns(self) -> list[Turn]:
        """The history, questions and answers by turns; an answer that was asked for and not yet read is in it."""
        self._settle()
        return self._turns

    @property
    def waiting(self) -> list[MediaRef | Quote]:
        """What the next question will be about."""
        self._settle()
        return self._waiting

    # -- what the next question is about

    def attach(
        self, medium: Any, kind: Kind | None = None, start: float | None = None, end: float | None = None
    ) -> MediaUse:
        """Put a medium before the next question. It is decoded and encoded now, once for the conversation.

        Args:
            medium: a reference, a file, encoded bytes, or a picture, frames, sound or points in memory, as
                `mmtune.serve.values.reference_to` takes them.
            kind: the kind of media; detected by content when not given.
            start: where the part of a clip begins that is meant, seconds.
            end: where it ends, seconds.

        Raises:
            UsageError: no branch of the run takes this kind of media, or the kind cannot be detected.
            MediaError: it cannot be decoded.
        """
        from mmtune.serve.values import reference_to

        ref = reference_to(kind, medium)
        if start is not None or end is not None:
            ref = replace(ref, start=start, end=end)
        self._settle()
        use = self._look(ref)
        self._waiting.append(ref)
        return use

    def quote(self, quote: Quote) -> None:
        """Put text from elsewhere before the next question, as marked data."""
        self.waiting.append(quote)

    # -- questions and answers

    def ask(self, text: str, *, image: Any = None, video: Any = None, audio: Any = None, points: Any = None) -> Answer:
        """Ask about these media, the waiting ones, and everything before.

        The answer is generated when it is read: piece by piece by iterating over it, else as a whole, at the latest
        when the conversation continues. Each of the media arguments takes one, or a list of several: paths, encoded
        bytes, pictures of PIL, arrays and tensors, as `mmtune.serve.values` says.

        Raises:
            UsageError: the question is empty, or no branch of the run takes such media.
            MediaError: a medium cannot be decoded.
        """
        from mmtune.serve.values import references_to

        if not isinstance(text, str):
            raise UsageError(seen=f"a question that is a {type(text).__name__}", expected="text")
        if not text.strip():
            raise UsageError(seen="an empty question", expected="some words", hint="type what you want to know")
        named = {"image": image, "video": video, "audio": audio, "points": points}
        more = [ref for kind, value in named.items() if value is not None for ref in references_to(kind, value)]
        self._settle()
        for ref in more:
            self._look(ref)
        before = tuple(self._waiting)
        return self._answer(Turn("user", (*before, *more, text)), (*before, *more), waiting=before)

    def retry(self) -> Answer:
        """Forget the last answer and answer the same question again, with the next seed."""
        self._need_turns("nothing to answer again")
        self.settings.seed += 1
        question = self._turns[-2]
        return self._answer(question, self._given(question), replaced=self._turns[-2:])

    def undo(self) -> Turn:
        """Forget the last question with its answer; returns the question. What it was about waits again."""
        self._need_turns("nothing to undo")
        question = self._turns[-2]
        self._waiting[:0] = self._given(question)
        del self._turns[-2:]
        return question

    def clear(self) -> None:
        """Forget every turn and every waiting medium; settings and the system text stay."""
        if self._open is not None:
            self._open.close()
            self._open = None
        self._turns.clear()
        self._waiting.clear()
        self._looked.clear()

    # -- looking at it

    def sample(self, question: Turn | None = None) -> Sample:
        """History and question as the processor gets them; the assistant's answer is left open."""
        self._settle()
        return self._sample(question)

    def rendered(self) -> str:
        """The exact prompt that the next question would continue, media tokens marked."""
        return self.engine.rendered(self.sample(Turn("user", tuple(self.waiting))))

    def media(self) -> list[MediaRef]:
        """All media of the history, then the waiting ones."""
        told = [part for turn in self.turns for part in turn.parts if isinstance(part, MediaRef)]
        return told + [part for part in self.waiting if isinstance(part, MediaRef)]

    def transcript(self) -> dict[str, Any]:
        """The conversation as plain data: text in full, media by origin, path and digest."""
        return transcript.record(
            str(self.engine.run),
            self.system,
            vars(self.settings).copy(),
            self.turns,
            self._waiting,
            self.engine.digest,
        )

    def restore(self, saved: transcript.Saved, check: transcript.Check | None = None) -> list[str]:
        """Go on with a conversation that was saved, in the place of this one.

        Args:
            check: raises UsageError for a medium that the run does not take.

        Returns:
            A line for each medium that is left out because it is not here any more, has changed, or does not fit.
        """
        turns, waiting, notes = saved.restored(check)
        self.clear()
        self.system = saved.system
        self._turns, self._waiting, self._asked = turns, waiting, []
        for turn in turns:
            quotes = [part for part in turn.parts if isinstance(part, Quote)]
            told = frozenset((quote.source, ref, None) for quote in quotes for ref in turn.media)
            self._asked.append(_Asked(turn, turn.media, told))
        for name, value in saved.settings.items():
            self.settings.change(name, value)
        return notes

    # -- inside

    def _settle(self) -> None:
        """Bring an answer that was asked for to its end before anything else happens."""
        answer, self._open = self._open, None
        if answer is not None:
            answer.settle()

    def _look(self, ref: MediaRef) -> MediaUse:
        use = self.engine.look(ref)
        self._looked.setdefault(ref, use)
        return use

    def _sample(self, question: Turn | None = None) -> Sample:
        head = (Turn("system", (self.system,)),) if self.system else ()
        tail = (question,) if question else ()
        return Sample("chat", (*head, *self._turns, *tail))

    def _given(self, question: Turn) -> tuple[MediaRef | Quote, ...]:
        return next((one.given for one in self._asked if one.question is question), question.media)

    def _need_turns(self, seen: str) -> None:
        if len(self.turns) < 2:
            raise UsageError(seen=seen, expected="at least one question with its answer", hint="ask something first")

    def _answer(
        self,
        question: Turn,
        given: tuple[MediaRef | Quote, ...],
        waiting: Sequence[MediaRef | Quote] = (),
        replaced: Sequence[Turn] = (),
    ) -> Answer:
        facts = Facts()
        self._open = Answer(self._stream(facts, question, given, waiting, replaced), facts)
        return self._open

    def _stream(
        self,
        facts: Facts,
        question: Turn,
        given: tuple[MediaRef | Quote, ...],
        waiting: Sequence[MediaRef | Quote],
        replaced: Sequence[Turn],
    ) -> Iterator[str]:
        del self._waiting[: len(waiting)]
        del self._turns[len(self._turns) - len(replaced) :]
        start = time.perf_counter()
        settings = self.settings
        done = False
        try:
            question, told = self._advised(question, facts)
            begin = time.perf_counter()
            prompt, question = self._prompt(question, facts)
            facts.prompt_tokens, facts.left_out = prompt.tokens, prompt.left_out
            facts.media = tuple(self._looked.pop(use.ref, use) for use in prompt.media)
            facts.prepare_seconds = time.perf_counter() - begin
            text = TextStream(self.engine.decode)
            finish: Finish = "stop"
            for token in self.engine.stream(prompt, settings.max_tokens, settings.temperature, settings.seed):
                facts.answer_tokens += 1
                if facts.answer_tokens == 1:
                    facts.first_seconds = time.perf_counter() - start
                piece = text.push(token)
                if not facts.text:
                    piece = piece.lstrip()  # many tokenizers begin a text with a blank
                facts.text += piece
                facts.total_seconds = time.perf_counter() - start
                if piece:
                    yield piece
            if facts.answer_tokens >= settings.max_tokens:
                finish = "length"
            piece = text.flush()
            facts.text += piece
            facts.finish, done = finish, True
            if piece:
                yield piece
        except (KeyboardInterrupt, GeneratorExit):
            if not done:
                facts.finish, done = "interrupted", bool(facts.text.strip())
            raise
        finally:
            facts.total_seconds = time.perf_counter() - start
            if done:
                self._turns += [question, Turn("assistant", (facts.text,))]
                self._asked.append(_Asked(question, given, told))
            else:
                self._turns += replaced
                self._waiting[:0] = waiting

    def _advised(self, question: Turn, facts: Facts) -> tuple[Turn, Told]:
        """The question with what experts say about its media and earlier ones, and a note of who has spoken."""
        kept = [question, *self._turns]
        self._asked = [one for one in self._asked if any(one.question is turn for turn in kept)]
        here = frozenset[Any]().union(*(one.told for one in self._asked if one.question is question))
        if not self.experts:
            return question, here
        from mmtune.serve.experts import with_quotes

        before = frozenset[Any]().union(*(one.told for one in self._asked))
        refs = [ref for turn in (*self._turns, question) for ref in turn.media]
        findings = self.experts.hear(refs, question.text, before)
        facts.experts = tuple(findings)
        return with_quotes(question, findings), here | self.experts.told(findings, question.text)

    def _prompt(self, question: Turn, facts: Facts) -> tuple[Prompt, Turn]:
        """The prompt; without what experts said if it cannot be made with it, such as for its length."""
        try:
            return self.engine.prompt(self._sample(question)), question
        except DataError as error:
            said = [finding.quote for finding in facts.experts if finding.quote]
            if not said:
                raise
            parts = (part for part in question.parts if not any(part is one for one in said))
            bare = replace(question, parts=tuple(parts))
            prompt = self.engine.prompt(self._sample(bare))
            note = f"what it said cannot be used ({error.reason})"
            facts.experts = tuple(one.left_out(note) if one.quote else one for one in facts.experts)
            return prompt, bare
