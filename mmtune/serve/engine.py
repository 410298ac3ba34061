"""A loaded run that answers: what every face of a conversation stands on.

An item is decoded, prepared and encoded once per engine; the key is the digest of its bytes with the clip range,
so the same picture under two names is one.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmtune.errors import DataError, Reason
from mmtune.types import Example, Kind, MediaRef, Sample

if TYPE_CHECKING:
    from torch import Tensor

    from mmtune.model import MultimodalModel
    from mmtune.processor import Processor

KEPT_BYTES = 1 << 30
"""Memory for the features of media that were shown; the item unused for longest goes first."""


@dataclass(frozen=True)
class MediaUse:
    """How one medium takes part in a prompt."""

    ref: MediaRef
    digest: str
    """sha256 of the bytes."""
    branch: str
    frames: int
    """F, as the encoder sees it."""
    tokens: int
    """K, positions it takes in the text."""
    seconds: float
    """Time for decoding, preparing and encoding; 0 where that was done before."""

    def record(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "kind": self.ref.kind,
            "origin": self.ref.origin,
            "sha256": self.digest,
            **({"range": self.ref.range} if self.ref.range else {}),
            "branch": self.branch,
            "frames": self.frames,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 4),
        }

    def line(self) -> str:
        """One line for people."""
        frames = f"{self.frames} frames, " if self.frames > 1 else ""
        taken = f"{self.seconds:.2f} s" if self.seconds else "kept from before"
        return f"{self.ref.kind} {self.ref.origin}{self.ref.range}: {frames}{self.tokens} tokens, {taken}"


@dataclass(frozen=True)
class Prompt:
    """A conversation ready to be answered."""

    example: Example
    media: tuple[MediaUse, ...]
    left_out: int = 0
    """Oldest exchanges that did not fit any more."""

    @property
    def tokens(self) -> int:
        """Places, media included."""
        return len(self.example)


class Engine:
    """Model, processor, and the features of the media seen so far.

    Args:
        run: where it comes from, for records.
        model: on its device; set to eval mode here.
        processor: of the same recipe. Its features are set here.
        top_p: drawn answers take from the likeliest tokens that together reach this probability.
    """

    def __init__(self, run: Path, model: MultimodalModel, processor: Processor, top_p: float = 1.0) -> None:
        from mmtune.items import set_features

        self.run = run
        self.top_p = top_p
        self.model = model.eval().requires_grad_(False)
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self._features = _Features(model, processor)
        set_features(model, [processor], self._features)

    def look(self, ref: MediaRef) -> MediaUse:
        """Decode and encode a medium, unless that was done before.

        Raises:
            UsageError: no branch takes its kind.
            MediaError: it cannot be decoded.
        """
        branch = self.processor.branch(ref.kind)
        start = time.perf_counter()
        features, fresh = self._features.find(branch, ref)
        frames = features.shape[0]
        to = self.model.branches[branch]
        taken = to.connector.num_tokens(features, to.encoder) if self.processor.uses_placeholders else 0
        seconds = time.perf_counter() - start if fresh else 0.0
        return MediaUse(ref, self._features.digest(ref), branch, frames, taken, seconds)

    def digest(self, ref: MediaRef) -> str:
        """sha256 of the bytes of a medium as it was when it was first seen."""
        return self._features.digest(ref)

    def prompt(self, sample: Sample) -> Prompt:
        """Tokens and media of a conversation that ends with a question; the oldest exchanges go if it is too long.

        Raises:
            DataError: too long even with the last question alone.
            MediaError, UsageError: see `look`.
        """
        media = {ref: self.look(ref) for ref in sample.media}
        example, fitting, left_out = self._fit(sample)
        return Prompt(example, tuple(media[ref] for ref in fitting.media), left_out)

    def _fit(self, sample: Sample) -> tuple[Example, Sample, int]:
        try:
            return self.processor.fit(sample, answer=True, too_long="turns")
        except DataError as error:
            if error.reason != Reason.too_long:
                raise
            seen = f"the question alone, with its media, has {error.seen.rpartition(': ')[2]}"
            raise DataError(error.reason, seen, error.expected, "a shorter question, or less media") from error

    def stream(self, prompt: Prompt, max_tokens: int, temperature: float, seed: int) -> Iterator[int]:
        """The tokens of an answer as they come; the one that ends it is not given."""
        from mmtune import generate

        return generate.stream(
            self.model,
            prompt.example,
            self.processor.stops,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=self.top_p,
            seed=seed,
        )

    def decode(self, ids: list[int]) -> str:
        """Token numbers to text."""
        return self.tokenizer.decode(ids)

    def rendered(self, sample: Sample) -> str:
        """The prompt as the template writes it, control strings included, with a mark for the tokens of each medium."""
        example, sample, left_out = self._fit(sample)
        slots = iter(example.slots)
        spans = self.processor.template.spans(sample, answer=True, marks=self.processor.uses_placeholders)
        words = [_slot_mark(span.ref, next(slots)) if span.type == "media" else span.text for span in spans]
        head = f"({left_out} earlier exchanges left out)\n" if left_out else ""
        return f"{head}{''.join(words)}\n({len(example)} tokens)"


def _slot_mark(ref: MediaRef, slot: Any) -> str:
    return f"[{ref.kind} {ref.origin}: {slot.branch}, {slot.length} tokens]"


class _Features:
    """Features of media by digest: the processor's store, filled on demand."""

    def __init__(self, model: MultimodalModel, processor: Processor) -> None:
        self._model = model
        self._processor = processor
        self._kept: OrderedDict[tuple[str, Kind, str], Tensor] = OrderedDict()
        self._digests: dict[MediaRef, str] = {}

    def get(self, branch: str, ref: MediaRef) -> Tensor:
        """Features [F,N,E], on the CPU."""
        return self.find(branch, ref)[0]

    def digest(self, ref: MediaRef) -> str:
        """The digest of a medium as it was when it was first seen."""
        if ref not in self._digests:
            self._digests[ref] = ref.digest
        return self._digests[ref]

    def find(self, branch: str, ref: MediaRef) -> tuple[Tensor, bool]:
        """Features [F,N,E], and whether they had to be computed."""
        key = (branch, ref.kind, self.digest(ref) + ref.range)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key], False
        from mmtune.items import encode_item

        features = encode_item(self._model.branches[branch].encoder, self._processor.prepare(ref)).cpu()
        self._kept[key] = features
        while len(self._kept) > 1 and sum(t.numel() * t.element_size() for t in self._kept.values()) > KEPT_BYTES:
            self._kept.popitem(last=False)
        return features, True
