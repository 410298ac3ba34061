"""A conversation becomes an `Example`: the one place where tokens, labels, placeholders of media and lengths are
settled.

Training and chat take the same road. Spans are tokenized one by one and never again; what is learned is known of every
token as it is written, and the one shift of the labels is done here. How many tokens an item takes is asked of the
connector, and the model is later held to it.

Too long is a rule, never a cut through a slot or a turn:

- drop: the sample is refused with reason `too_long`, to be skipped and counted;
- turns: whole exchanges are left out until it fits, the last ones in training (media stand in the first), the oldest
  ones in chat; what does not fit even so is refused as above;
- cut: in training, what is after the last place goes, the end mark with it, as the published code of LLaMA-Adapter
  does; where that leaves nothing to learn, or goes through a slot, and in chat, it is refused as above;
- error: the run stops.

A sample with alternatives is one example of one length, its conversations one after another. Of it the rules turns and
cut refuse what is too long: what is compared is not shortened.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from mmtune import media
from mmtune.draft import Draft
from mmtune.errors import ConfigError, DataError, ModelError, Note, Reason, UsageError
from mmtune.items import BranchLike, FeatureStore, prepare_item
from mmtune.llm.base import Before, Tokenizer
from mmtune.prompt import Span, Template
from mmtune.types import Example, Kind, MediaRef, Sample, Slot

if TYPE_CHECKING:
    import numpy as np

TooLong = Literal["drop", "turns", "cut", "error"]
Stop = int | tuple[int, ...]


MOST_TOKENS = 1 << 24
"""Most tokens that stand for one item."""


class _Items:
    """The media of a sample, each made ready once, and what was unusual about them."""

    def __init__(self) -> None:
        self.made: dict[int, Tensor] = {}
        self.notes: Counter[Note] = Counter()


class Processor:
    """Sample to Example.

    Args:
        branches: name to branch; each kind of media may go to one branch only.
        tokenizer: of the language model.
        template: how conversations are written.
        length: most tokens of an example; none for no limit.
        too_long: what happens to a longer one, see above.
        uses_placeholders: whether media occupy tokens of the text, as the fusion says.
        features: stored features, used instead of decoding wherever it has an item.
        default_image_branch: branch that gets an all-zero picture where a conversation has nothing for it, as the
            fusion says.
        limits: the most that one item of media may cost; the usual ones when not given.

    Raises:
        ConfigError: two branches for one kind, or a template whose marks the tokenizer does not know.
    """

    def __init__(
        self,
        branches: Mapping[str, BranchLike],
        tokenizer: Tokenizer,
        template: Template,
        length: int | None = None,
        too_long: TooLong = "drop",
        uses_placeholders: bool = True,
        features: FeatureStore | None = None,
        default_image_branch: str | None = None,
        limits: media.Limits | None = None,
    ) -> None:
        self.branches = dict(branches.items())
        self.tokenizer = tokenizer
        self.template = template
        self.length = length
        self.too_long = too_long
        self.uses_placeholders = uses_placeholders
        self.features = features
        self.limits = limits
        self.kinds = _routes(self.branches)
        self.default_image_branch = default_image_branch
        if default_image_branch is not None and (uses_placeholders or self.kinds.get("image") != default_image_branch):
            raise ConfigError(
                f"an all-zero picture for the branch {default_image_branch!r}",
                "a branch for images, and a fusion that uses no placeholders in the text",
                f"fusion.default_image_branch={next(iter(self.branches), 'null')}",
            )
        self.stops: frozenset[Stop] = frozenset(_single(tokenizer, text, "stop") for text in template.stop)
        """Ids that end an answer, and rows of ids that do so together."""
        for text in template.ends:
            self.stops |= {tuple(tokenizer.encode(text, after)) for after in ("start", "text")}
        for text in template.tokens:
            _single(tokenizer, text, "tokens")

    def example(self, sample: Sample, answer: bool = False, rng: np.random.Generator | None = None) -> Example:
        """A conversation as tokens, labels, slots and prepared media; arguments and errors are those of `fit`."""
        return self.fit(sample, answer, rng)[0]

    def fit(
        self,
        sample: Sample,
        answer: bool = False,
        rng: np.random.Generator | None = None,
        too_long: TooLong | None = None,
    ) -> tuple[Example, Sample, int]:
        """The example of a conversation, the conversation as it fits, and how many exchanges were left out.

        Args:
            answer: leave the assistant's turn open; nothing is learned.
            rng: randomness of the encoders' preparation; none for none.
            too_long: the rule for this one; the processor's when not given.

        Raises:
            DataError: too_long, empty_target (nothing to learn), bad_text, wrong_media_type (no branch takes it).
            MediaError: an item that cannot be decoded.
            UsageError: too long, where the rule is error.
        """
        items, rule, left_out = _Items(), too_long or self.too_long, 0
        if sample.alternatives and not answer and rule != "error":
            rule = "drop"
        full = draft = self._draft(sample, answer, rng, items)
        while self.length is not None and len(draft.tokens) > self.length:
            if rule == "cut" and not answer and draft.cut(self.length):
                break
            shorter = _shorter(sample, answer) if rule == "turns" else None
            if shorter is None:
                tokens = len((draft if answer else full).tokens)  # in chat, those of the question alone
                seen, expected = f"{sample.id}: {tokens} tokens", f"at most {self.length}"
                if rule == "error":
                    raise UsageError(seen, expected, "raise run.length, or choose the rule drop or turns")
                raise DataError(Reason.too_long, seen, expected)
            sample, left_out = shorter, left_out + 1
            draft = self._draft(sample, answer, rng, items)
        if not answer and not draft.learns:
            where = " in one of its conversations" if sample.alternatives else ""
            raise DataError(
                Reason.empty_target,
                f"{sample.id}: {len(draft.tokens)} tokens, none of them to learn{where}",
                "an assistant's turn with text and a weight above 0",
            )
        example = draft.example(sample, train_on=not answer)
        return replace(example, notes=tuple(sorted(items.notes.elements()))), sample, left_out

    def _draft(self, sample: Sample, answer: bool, rng: np.random.Generator | None, items: _Items) -> Draft:
        """The conversations of a sample one after the other; of one that is to be answered, the first."""
        draft = self._conversation(sample, answer, rng, items)
        for turns in () if answer else sample.alternatives:
            draft.join(self._conversation(replace(sample, turns=turns), answer, rng, items))
        return draft

    def _conversation(self, sample: Sample, answer: bool, rng: np.random.Generator | None, items: _Items) -> Draft:
        draft = Draft()
        for span in self.template.spans(sample, answer, marks=self.uses_placeholders):
            if span.type == "media":
                self._add_media(draft, span.ref, rng, items)
                continue
            ids = self._ids(span, draft.after)
            draft.write(ids, span.weight)
            if ids:
                draft.after = "mark" if ids[-1] in self.tokenizer.special_ids else "text"
        if self.default_image_branch is not None and self.default_image_branch not in draft.media:
            draft.slots.append(Slot(self.default_image_branch, 0, 0, 0))
            draft.media[self.default_image_branch] = [self.branches[self.default_image_branch].black_image()]
        return draft

    def _ids(self, span: Span, after: Before) -> list[int]:
        if span.type == "control":
            return self.tokenizer.encode_special(span.text, after)
        if span.type == "timestamps":
            return self.tokenizer.encode(self._timestamps(span), after)
        return self.tokenizer.encode(span.text, after)

    def _add_media(self, draft: Draft, ref: MediaRef, rng: np.random.Generator | None, items: _Items) -> None:
        branch, item = self.item(ref, rng, items)
        to = self.branches[branch]
        num_tokens = to.connector.num_tokens(item, to.encoder) if self.uses_placeholders else 0
        if num_tokens > MOST_TOKENS:  # before they are written, for a recipe may come from anywhere
            raise ModelError(
                f"branch {branch} makes {num_tokens:,} tokens of one item",
                f"at most {MOST_TOKENS:,}",
                "look at the sizes of its connector and encoder in the recipe",
            )
        held = draft.media.setdefault(branch, [])
        draft.slots.append(Slot(branch, len(draft.tokens), num_tokens, len(held)))
        held.append(item)
        draft.write([self.tokenizer.pad] * num_tokens)
        if num_tokens:
            draft.after = "start"

    def _timestamps(self, span: Span) -> str:
        """What a template says about when the frames of a video are taken."""
        encoder = self.branches[self.branch_of(span.ref)].encoder
        seconds = media.format_times(media.frame_times(span.ref, encoder.sampling(span.ref.kind), self.limits))
        return span.text.replace("{count}", str(len(seconds))).replace("{times}", ", ".join(seconds))

    def branch(self, kind: Kind) -> str:
        """The branch that takes a kind of media. Raises UsageError when there is none."""
        if kind not in self.kinds:
            raise UsageError(
                seen=f"{kind}, and no branch of the model takes that",
                expected=f"one of {', '.join(sorted(self.kinds)) or 'no media at all'}",
                hint=f"train a model with a branch for {kind}",
            )
        return self.kinds[kind]

    def branch_of(self, ref: MediaRef) -> str:
        """The branch that takes an item of some data. Raises DataError wrong_media_type when there is none."""
        try:
            return self.branch(ref.kind)
        except UsageError as error:
            seen = f"{ref.origin} is {error.seen}"
            raise DataError(Reason.wrong_media_type, seen, error.expected, error.hint) from error

    def item(
        self, ref: MediaRef, rng: np.random.Generator | None = None, items: _Items | None = None
    ) -> tuple[str, Tensor]:
        """Branch of an item, and the item ready for it: stored features [F,N,E], or what `prepare` makes, [F,...]."""
        branch = self.branch_of(ref)
        items = items or _Items()
        if id(ref) not in items.made:
            found = self.features.get(branch, ref) if self.features is not None else None
            if found is None:
                found = self.prepare(ref, rng, items.notes)
            items.made[id(ref)] = found
        return branch, items.made[id(ref)]

    def prepare(
        self, ref: MediaRef, rng: np.random.Generator | None = None, notes: Counter[Note] | None = None
    ) -> Tensor:
        """What the encoder of its branch makes of a decoded item, [F,...]; what was unusual is counted in `notes`."""
        return prepare_item(self.branches[self.branch_of(ref)].encoder, ref, self.limits, rng, notes)


def _routes(branches: Mapping[str, BranchLike]) -> dict[Kind, str]:
    """Kind of media to the branch it goes to."""
    routes: dict[Kind, str] = {}
    for name, branch in branches.items():
        for kind in branch.kinds:
            if kind in routes:
                raise ConfigError(
                    f"branches {routes[kind]} and {name} both take {kind}",
                    "one branch for each kind of media",
                    f"write `kinds` at the branches, as in model.branches.{name}.kinds=[...]",
                )
            routes[kind] = name
    return routes


def _single(tokenizer: Tokenizer, text: str, key: str) -> int:
    """The id of a string that must be one control token."""
    ids = tokenizer.encode_special(text)
    if len(ids) != 1 or ids[0] not in tokenizer.special_ids:
        raise ConfigError(
            f"{key} of the template has {text!r}, which is {len(ids)} tokens of plain text to this tokenizer",
            "strings that are one control token each",
            "use the template that belongs to the language model",
        )
    return ids[0]


def _shorter(sample: Sample, answer: bool) -> Sample | None:
    """The sample with one exchange less, or None when only one is left.

    An exchange begins with a user's turn. Turns before the first one (the system's) are kept.
    """
    starts = [number for number, turn in enumerate(sample.turns) if turn.role == "user"]
    if len(starts) < 2:
        return None
    chat = sample.turns[: starts[0]] + sample.turns[starts[1] :]
    return replace(sample, turns=chat if answer else sample.turns[: starts[-1]])
