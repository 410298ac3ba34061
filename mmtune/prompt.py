"""A prompt template turns a conversation into spans: control strings, text, media; and says what carries loss.

A template is data (configs/prompts/NAME.yaml). Nothing is joined to one string here and split again later: spans are
tokenized one by one, so what is learned is known for every token, and no text can pass for a mark.

Spaces. The text of a part is stripped at both ends, unless its side says otherwise. A control string that ends in a
space gives this space to the text after it ("USER: " and "hello" become "USER:" and " hello"), because that is where
tokenizers put it; where no text follows, as before an answer that is still to be written, the space is left out.

Quotes. Text from elsewhere stands between the two marks of `quote`. Where these are control tokens nothing inside can
spell them. Where they are ordinary text, as brackets are, the quoted text is put on one line and loses whatever would
end or begin a quote, so that it cannot step out of its marks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from mmtune import config
from mmtune.config import Config
from mmtune.errors import ConfigError
from mmtune.types import Kind, MediaRef, Quote, Sample, Turn

_SOFTER = {"[": "(", "]": ")", "{": "(", "}": ")", "<": "(", ">": ")"}
"""What stands for a bracket inside a quote that such brackets mark."""


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a prompt. Text and quotes are content: no control token may come out of them."""

    type: Literal["control", "text", "quote", "media", "timestamps"]
    """Of `timestamps`, `text` has {count} and {times} in it, which stand for when the frames of `ref` are taken."""
    text: str = ""
    ref: MediaRef | None = None
    weight: float = 0.0
    """What its tokens count in the loss; 0 where they are not learned."""


class Side(Config):
    """How the turns of one role are written."""

    before: str = ""
    """Control string before the turn."""
    after: str = ""
    """Control string after the turn. After an assistant's, it is learned up to and with the first stop string."""
    inside: bool = False
    """For the system role: write the turn into the next user turn, after its `before`."""
    text: bool = True
    """Whether the text of the turn is written; if not, only its media are."""
    strip: bool = True
    """Whether blanks at both ends of its texts are left out; if not, texts are written as they are."""


class Template(Config):
    """A prompt template.

    Control strings may say {bos} and {eos}, which stand for the begin and end marks of the tokenizer.
    """

    begin: str = ""
    """Control string at the beginning of every conversation."""
    default_system: str | None = None
    """Text of a system turn for conversations that have none; none adds no such turn."""
    system: Side = Side()
    """How system turns are written."""
    user: Side = Side()
    """How user turns are written."""
    assistant: Side = Side()
    """How assistant turns are written; their text is what is learned."""
    media: dict[Kind, tuple[str, str]] = {}
    """For each kind of media that may occur, the control strings before and after its tokens."""
    quote: tuple[str, str] = ("[", "]\n")
    """Control strings before and after text that comes from elsewhere; it is written as "source: text"."""
    timestamps: str = ""
    """Said after a video: {count} is the number of its frames, {times} their seconds with one decimal."""
    ends: tuple[str, ...] = ()
    """Strings that end an answer too, although they are plain text to the tokenizer, for models that were published
    without a mark of their own. Such a string in a text ends the answer as well."""
    stop: tuple[str, ...] = ("{eos}",)
    """Strings that end an answer; each must be one control token of the tokenizer."""
    tokens: tuple[str, ...] = ()
    """Further strings of this template that must be one control token each; with others the template is no good."""

    def spans(self, sample: Sample, answer: bool = False, marks: bool = True) -> list[Span]:
        """The spans of a conversation in order.

        Args:
            answer: leave the assistant's turn open for an answer to be written; a final assistant turn of the sample
                is left out.
            marks: write the strings around media; not wanted where media take no tokens of the text.

        Raises:
            ConfigError: a kind of media for which the template has no place.
        """
        return list(_settled(self._spans(sample, answer, marks), answer))

    def _spans(self, sample: Sample, answer: bool, marks: bool) -> Iterator[Span]:
        turns = list(sample.turns)
        if answer and turns[-1].role == "assistant":
            turns.pop()
        if self.default_system is not None and not any(turn.role == "system" for turn in turns):
            turns.insert(0, Turn("system", (self.default_system,)))
        yield Span("control", self.begin)
        waiting: list[Span] = []
        for turn in turns:
            side: Side = getattr(self, turn.role)
            body = list(self._turn(turn, side, marks))
            if turn.role == "system" and side.inside:
                waiting += body
                continue
            yield Span("control", side.before)
            if turn.role == "user":
                yield from waiting
                waiting = []
            yield from body
        if waiting:
            raise ConfigError(
                f"sample {sample.id} has a system turn and no user turn after it",
                "a user turn that the system text can be written into",
            )
        if answer:
            yield Span("control", self.assistant.before)

    def _turn(self, turn: Turn, side: Side, marks: bool) -> Iterator[Span]:
        weight = float(turn.weight) if turn.role == "assistant" else 0.0
        if side.inside:
            yield Span("control", side.before)
        glue = ""
        for part in turn.parts:
            match part:
                case MediaRef():
                    yield from self._media(part, marks)
                    glue = " " if self._timed(part, marks) else ""
                case Quote():
                    yield Span("control", self.quote[0])
                    yield Span("quote", self._inside(f"{part.source.strip()}: {part.text.strip()}"))
                    yield Span("control", self.quote[1])
                    glue = ""
                case _ if side.text and part.strip():
                    yield Span("text", glue + part.strip() if side.strip else part, weight=weight)
                    glue = " "
        end, rest = self._end(side.after) if turn.role == "assistant" else ("", side.after)
        yield Span("control", end, weight=weight)
        yield Span("control", rest)

    def _inside(self, text: str) -> str:
        """Quoted text that cannot pass for the marks around it."""
        plain = [mark.strip() for mark in self.quote if mark.strip() not in (*self.tokens, *self.stop)]
        if not plain:
            return text
        text = " ".join(text.split())
        for mark in filter(None, plain):
            other = _SOFTER.get(mark, "")
            while mark in text:  # what is left over may make another one
                text = text.replace(mark, other)
        return text

    def _media(self, ref: MediaRef, marks: bool) -> Iterator[Span]:
        if ref.kind not in self.media:
            raise ConfigError(
                f"{ref.origin}: {ref.kind}, and the template has places for {', '.join(self.media) or 'no media'}",
                f"a line for {ref.kind} under `media` of the template",
            )
        before, after = self.media[ref.kind] if marks else ("", "")
        yield Span("control", before)
        yield Span("media", ref=ref)
        yield Span("control", after)
        if self._timed(ref, marks):
            yield Span("timestamps", self.timestamps.strip(), ref)

    def _timed(self, ref: MediaRef, marks: bool) -> bool:
        return bool(self.timestamps) and marks and ref.kind == "video"

    def _end(self, after: str) -> tuple[str, str]:
        """What an assistant learns to write after its text, and the rest, which is written for it."""
        ends = [after.find(stop) + len(stop) for stop in (*self.stop, *self.ends) if stop in after]
        cut = min(ends) if ends else len(after)
        return after[:cut], after[cut:]

    def render(self, sample: Sample, answer: bool = False) -> str:
        """The prompt as one string for people to read; media as [kind]. Nothing tokenizes this."""
        spans = self.spans(sample, answer)
        return "".join(f"[{span.ref.kind}]" if span.type == "media" else span.text for span in spans)


def _settled(spans: Iterator[Span], answer: bool) -> Iterator[Span]:
    """Neighbouring control strings joined, empty spans dropped, a control string's last space moved (see above)."""
    held: Span | None = None
    for span in spans:
        if span.type != "media" and not span.text:
            continue
        if held is not None and span.type == "control" and span.weight == held.weight:
            held = replace(span, text=held.text + span.text)
            continue
        if held is not None:
            if span.type in ("text", "quote", "timestamps") and held.text.endswith(" ") and not held.weight:
                held, span = replace(held, text=held.text[:-1]), replace(span, text=" " + span.text)
            if held.text:
                yield held
        held = span if span.type == "control" else None
        if held is None:
            yield span
    if held is not None:
        text = held.text.removesuffix(" ") if answer else held.text
        if text:
            yield replace(held, text=text)


def load(path_or_name: str) -> Template:
    """A template by its name in configs/prompts, or by its path. Raises ConfigError."""
    return config.load(Template, path_or_name, builtin="prompts")
