"""The few types that carry the data, from bytes to embeddings. Each checks its own shape when it is made.

Letters: `B` rows, `T` tokens in a row, `S` segments in a row, `M` media items of one branch in a batch, `F` frames of
an item, `N` encoder tokens per frame, `E` encoder width, `K` tokens an item takes in the LLM, `D` LLM width.
An item always has a frame axis: a still image has F = 1.

torch is not imported here (only named for type checkers), so that reading an index of shards stays quick. The checks
look at ranks, sizes and dtypes only, never at values, so they cost nothing on a GPU.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from mmtune.errors import MediaError, Note, Reason, ShapeError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from torch import Tensor
    from torch.nn import Parameter

Kind = Literal["image", "video", "audio", "points"]
Role = Literal["system", "user", "assistant"]

KINDS: tuple[Kind, ...] = get_args(Kind)
ROLES: tuple[Role, ...] = get_args(Role)

IGNORE = -100
"""Label of a position that carries no loss."""

WEIGHTS = (1e-6, 1e6)
"""Least and largest weight of a turn that is learned: sums of float32 hold these beside each other."""
WEIGHTS_SAID = f"0, or a number from {WEIGHTS[0]:g} to {WEIGHTS[1]:g}"


def is_weight(value: Any) -> bool:
    """Whether a value can be the weight of a turn. A boolean is none: its meaning is up to the format."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and (value == 0 or WEIGHTS[0] <= value <= WEIGHTS[1])


def _check(what: str, tensor: Any, rank: int, dtype: str | None = None, letters: str = "") -> None:
    """Refuse a tensor of another rank or dtype. `letters` names the axes in the message, `dtype` is like "int64"."""
    shape = getattr(tensor, "shape", None)
    want = f"{dtype + ' ' if dtype else ''}tensor {letters or f'of rank {rank}'}"
    if shape is None:
        raise ShapeError(f"{what} is a {type(tensor).__name__}", want)
    name = str(tensor.dtype).removeprefix("torch.")
    if len(shape) != rank or (dtype is not None and name != dtype):
        raise ShapeError(f"{what} is {name} {list(shape)}", want)


def _same(what: str, left: Any, right: Any, axes: str) -> None:
    """Refuse two shapes that ought to be equal."""
    if tuple(left) != tuple(right):
        raise ShapeError(f"{what}: {list(left)} against {list(right)}", f"the same {axes}")


def _kind(kind: str, what: str) -> None:
    if kind not in KINDS:
        raise ShapeError(f"{what} has kind {kind!r}", f"one of {', '.join(KINDS)}")


class Tunable(Protocol):
    """A model whose parameters are given to groups."""

    tuned: Mapping[str, Sequence[str]]
    """Name of a tuner to the full names of the parameters that it added or opened."""
    named_parameters: Callable[..., Iterator[tuple[str, Parameter]]]


@dataclass(frozen=True, slots=True)
class MediaRef:
    """Media before decoding; cheap to carry and to pickle."""

    kind: Kind
    source: bytes | Path
    """Encoded file bytes, or where the file lies."""
    origin: str
    """For messages: "shard.tar/000012.mp4" or the path."""
    start: float | None = None
    """Video and audio only: seconds into the item at which the clip begins; none is its beginning."""
    end: float | None = None
    """Video and audio only: seconds into the item at which the clip ends; none is its end."""

    def __post_init__(self) -> None:
        _kind(self.kind, f"the reference to {self.origin or 'unnamed media'}")
        if not isinstance(self.source, (bytes, Path)):
            raise ShapeError(
                f"the source of {self.origin} is a {type(self.source).__name__}", "bytes or a pathlib.Path"
            )
        if self.start is not None or self.end is not None:
            self._check_range()

    def _check_range(self) -> None:
        what = f"{self.origin} from {self.start} to {self.end}"
        if self.kind not in ("video", "audio"):
            raise ShapeError(f"{what}: {self.kind}", "a video or a sound; only these have a start and an end")
        for value in (self.start, self.end):
            plain = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (plain and 0 <= value <= sys.float_info.max):
                raise ShapeError(what, "start and end in seconds, 0 or more")
        if self.end is not None and self.end <= (self.start or 0):
            raise ShapeError(what, "an end behind the start")

    def read(self) -> bytes:
        """The encoded bytes. Raises MediaError when the file cannot be read."""
        if isinstance(self.source, bytes):
            return self.source
        try:
            return self.source.read_bytes()
        except OSError as error:
            reason = Reason(f"unreadable_{self.kind}")
            raise MediaError(
                reason, f"{self.origin}: {error.strerror or error}", "a file that can be read", "check the path"
            ) from error

    @property
    def digest(self) -> str:
        """sha256 of the encoded bytes, in hex."""
        return hashlib.sha256(self.read()).hexdigest()

    @property
    def range(self) -> str:
        """The clip range as text, such as "@10.0-20.5" or "@10.0-"; empty for the whole item.

        Whatever is stored by the content of an item is stored by `digest` and `range`.
        """
        if self.start is None and self.end is None:
            return ""
        return f"@{float(self.start or 0)!r}-{'' if self.end is None else repr(float(self.end))}"

    def __repr__(self) -> str:
        where = f"{len(self.source)} bytes" if isinstance(self.source, bytes) else str(self.source)
        return f"MediaRef({self.kind}, {self.origin!r}, {where}{', ' + self.range if self.range else ''})"


@dataclass(frozen=True, slots=True)
class Media:
    """Decoded media."""

    kind: Kind
    data: Tensor
    """uint8 [F,3,height,width], float32 [channels,samples] in -1..1, or float32 [points,3+extra]."""
    times: Tensor | None = None
    """float64 [F], seconds from the start; frames only."""
    rate: int | None = None
    """Samples per second, Hz; sound only."""
    origin: str = ""
    columns: tuple[str, ...] = ()
    """Points only: a name for each column: x, y, z, then red, green, blue (in 0..1) where there are colours; empty for
    a column that the file does not name. None at all: nothing is known but x, y and z."""
    notes: tuple[Note, ...] = ()
    """What was unusual about the file; counted, and no reason not to use it."""

    def __post_init__(self) -> None:
        what = f"{self.kind} {self.origin}".strip()
        _kind(self.kind, self.origin or "media")
        if self.kind in ("image", "video"):
            _check(what, self.data, 4, "uint8", "[F,3,height,width]")
            if self.data.shape[1] != 3 or 0 in self.data.shape:
                raise ShapeError(
                    f"{what} is {list(self.data.shape)}", "[F,3,height,width] with three channels, nothing empty"
                )
            if self.kind == "image" and self.data.shape[0] != 1:
                raise ShapeError(f"{what} has {self.data.shape[0]} frames", "a still image has F = 1")
            if self.times is not None:
                _check(f"times of {what}", self.times, 1, "float64", "[F]")
                _same(f"times of {what}", self.times.shape, self.data.shape[:1], "number of frames")
        elif self.kind == "audio":
            _check(what, self.data, 2, "float32", "[channels,samples]")
            if self.rate is None or self.rate <= 0:
                raise ShapeError(f"{what} has rate {self.rate}", "samples per second, above zero")
        else:
            _check(what, self.data, 2, "float32", "[points,3+extra]")
            if self.data.shape[1] < 3:
                raise ShapeError(f"{what} is {list(self.data.shape)}", "at least x, y and z per point")
            if self.columns:
                _same(f"columns of {what}", (len(self.columns),), self.data.shape[1:], "number of columns")


@dataclass(frozen=True, slots=True)
class Quote:
    """Text that comes from elsewhere (a reader of letters, an expert): marked data, never an instruction."""

    source: str
    """Who said it, e.g. "ocr"."""
    text: str


Part = str | MediaRef | Quote


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation: parts in reading order."""

    role: Role
    parts: tuple[Part, ...]
    weight: float = 1.0
    """What the loss of each of its tokens is multiplied by, and what each counts: 0 where nothing is learned, else
    within WEIGHTS. Only an assistant's turn is ever learned."""

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ShapeError(f"a turn has role {self.role!r}", f"one of {', '.join(ROLES)}")
        if isinstance(self.parts, str) or not isinstance(self.parts, tuple):
            raise ShapeError(f"parts of a turn are a {type(self.parts).__name__}", "a tuple of text, MediaRef, Quote")
        if not is_weight(self.weight):
            raise ShapeError(f"a turn has weight {self.weight!r}", WEIGHTS_SAID)
        for part in self.parts:
            if not isinstance(part, (str, MediaRef, Quote)):
                raise ShapeError(f"a part of a turn is a {type(part).__name__}", "text, MediaRef or Quote")

    @property
    def text(self) -> str:
        """The plain text of the turn, media and quotes left out."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def media(self) -> tuple[MediaRef, ...]:
        """The media of the turn in reading order."""
        return tuple(part for part in self.parts if isinstance(part, MediaRef))


@dataclass(frozen=True)
class Sample:
    """One conversation, before any tokenizer is seen."""

    id: str
    turns: tuple[Turn, ...]
    stream: str = ""
    alternatives: tuple[tuple[Turn, ...], ...] = ()
    """Conversations that `turns` is compared with, each whole: that with the rejected answer of a pair. A medium of
    several of them is one MediaRef, and is prepared and encoded once."""

    def __post_init__(self) -> None:
        for turns in self.conversations:
            if not isinstance(turns, tuple) or not turns:
                raise ShapeError(f"sample {self.id!r} has turns {turns!r}", "a tuple with at least one Turn")
            for turn in turns:
                if not isinstance(turn, Turn):
                    raise ShapeError(f"a turn of sample {self.id!r} is a {type(turn).__name__}", "Turn")

    @property
    def conversations(self) -> tuple[tuple[Turn, ...], ...]:
        """The turns, and those of each alternative."""
        return (self.turns, *self.alternatives)

    @property
    def media(self) -> tuple[MediaRef, ...]:
        """All media of the conversation in reading order, then those that only alternatives have."""
        media = [ref for turn in self.turns for ref in turn.media]
        seen = {id(ref) for ref in media}
        others = {id(ref): ref for turns in self.alternatives for turn in turns for ref in turn.media}
        return (*media, *(ref for key, ref in others.items() if key not in seen))


@dataclass(frozen=True)
class Slot:
    """The tokens of one example that belong to one media item."""

    branch: str
    """Name of the branch whose embeddings fill them."""
    start: int
    length: int
    """Number of tokens, K; zero when the fusion uses no placeholders in the text."""
    item: int
    """Index into `Example.media[branch]`; slots of several sequences may have one item."""

    def __post_init__(self) -> None:
        if self.start < 0 or self.length < 0 or self.item < 0:
            raise ShapeError(f"slot {self.branch} {self.start}+{self.length}, item {self.item}", "nothing negative")


@dataclass(frozen=True)
class Example:
    """One sample, tokenized: lengths, slots, labels and media are settled and nothing later changes them.

    It is what is packed, skipped and counted. Its sequences stand one after another in the T tokens.
    """

    id: str
    tokens: Tensor
    """int64 [T]; at slots the tokenizer's pad id, overwritten by the fusion."""
    labels: Tensor
    """int64 [T], already shifted: the token to say after reading position t, or IGNORE."""
    slots: tuple[Slot, ...] = ()
    media: dict[str, list[Tensor]] = field(default_factory=dict)
    """Branch to prepared items, each [F,...]."""
    stream: str = ""
    weights: Tensor | None = None
    """float32 [T], what each label counts in the loss, 0 where there is none; None where every label counts 1."""
    notes: tuple[Note, ...] = ()
    """What was unusual about its media."""
    sequences: tuple[int, ...] = ()
    """Tokens of each conversation of the sample, where there are several: segments of their own."""

    def __post_init__(self) -> None:
        _check(f"tokens of {self.id}", self.tokens, 1, "int64", "[T]")
        _check(f"labels of {self.id}", self.labels, 1, "int64", "[T]")
        _same(f"tokens and labels of {self.id}", self.tokens.shape, self.labels.shape, "length T")
        if self.weights is not None:
            _check(f"weights of {self.id}", self.weights, 1, "float32", "[T]")
            _same(f"tokens and weights of {self.id}", self.tokens.shape, self.weights.shape, "length T")
        length, end = self.tokens.shape[0], 0
        if self.sequences and (min(self.sequences) < 1 or sum(self.sequences) != length):
            raise ShapeError(f"{self.id}: sequences of {self.sequences} in {length} tokens", "lengths that add up to T")
        for slot in sorted(self.slots, key=lambda slot: (slot.start, slot.length)):
            if slot.start + slot.length > length:
                raise ShapeError(f"{self.id}: {slot} in {length} tokens", "every slot inside the example")
            if slot.length and slot.start < end:
                raise ShapeError(f"{self.id}: {slot} begins before token {end}", "slots that do not overlap")
            end = max(end, slot.start + slot.length)
            if slot.item >= len(self.media.get(slot.branch, ())):
                have = {branch: len(items) for branch, items in self.media.items()}
                raise ShapeError(f"{self.id}: {slot} with media {have}", "a media item for every slot")

    def __len__(self) -> int:
        return int(self.tokens.shape[0])


@dataclass
class Batch:
    """Packed rows of examples. Padding has segment 0; the sequences of a row have segments 1..S.

    A sample is one segment, or as many one after another as it has conversations, see `samples`.
    """

    tokens: Tensor
    """int64 [B,T]"""
    labels: Tensor
    """int64 [B,T], already shifted, IGNORE where there is no loss."""
    positions: Tensor
    """int64 [B,T], counted from zero in each segment."""
    segments: Tensor
    """int32 [B,T]"""
    media: dict[str, Tensor] = field(default_factory=dict)
    """Branch to [M,F,...]."""
    frame_mask: dict[str, Tensor] = field(default_factory=dict)
    """Branch to bool [M,F]: which frames are real."""
    slots: dict[str, Tensor] = field(default_factory=dict)
    """Branch to int64 [M,4] = row, segment, start, length; one line per item, or as `items` says."""
    stream: str = ""
    ids: tuple[str, ...] = ()
    """Names of the samples."""
    weights: Tensor | None = None
    """float32 [B,T], what each label counts in the loss, 0 where there is none; None where every label counts 1."""
    samples: Tensor | None = None
    """int64 [n,3] = row, first segment, number of segments, one line for each of `ids`; None where each segment is a
    sample."""
    items: dict[str, Tensor] = field(default_factory=dict)
    """Branch to int64 [slots]: the item of each slot, where sequences of a sample share items."""

    def __post_init__(self) -> None:
        for name, dtype in (("tokens", "int64"), ("labels", "int64"), ("positions", "int64"), ("segments", "int32")):
            _check(f"batch {name}", getattr(self, name), 2, dtype, "[B,T]")
            _same(f"batch tokens and {name}", self.tokens.shape, getattr(self, name).shape, "[B,T]")
        if self.weights is not None:
            _check("batch weights", self.weights, 2, "float32", "[B,T]")
            _same("batch tokens and weights", self.tokens.shape, self.weights.shape, "[B,T]")
        if not set(self.media) == set(self.frame_mask) == set(self.slots):
            raise ShapeError(
                f"branches: media {sorted(self.media)}, frames {sorted(self.frame_mask)}, slots {sorted(self.slots)}",
                "the same branches in all three",
            )
        for branch, media in self.media.items():
            frames, slots = self.frame_mask[branch], self.slots[branch]
            _check(f"frames of {branch}", frames, 2, "bool", "[M,F]")
            _same(f"media and frames of {branch}", media.shape[:2], frames.shape, "[M,F]")
            _check(f"slots of {branch}", slots, 2, "int64", "[M,4]")
            items = self.items.get(branch)
            if items is not None:
                _check(f"items of {branch}", items, 1, "int64", "[slots]")
            lines = media.shape[0] if items is None else items.shape[0]
            _same(f"slots of {branch}", slots.shape, (lines, 4), "[M,4]")
        if self.samples is not None:
            _check("samples of the batch", self.samples, 2, "int64", "[n,3]")
            _same("samples and ids of the batch", self.samples.shape, (len(self.ids), 3), "[n,3]")

    def to(self, device: str | torch.device, non_blocking: bool = False) -> Batch:
        """The same batch with every tensor on `device`."""

        def move(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: move(item) for key, item in value.items()}
            return value if value is None else value.to(device, non_blocking=non_blocking)

        whole = ("tokens", "labels", "positions", "segments", "weights", "samples")
        names = (*whole, "media", "frame_mask", "slots", "items")
        return replace(self, **{name: move(getattr(self, name)) for name in names})


@dataclass
class Features:
    """What every encoder gives."""

    tokens: Tensor
    """[M,F,N,E]"""
    frame_mask: Tensor
    """bool [M,F]: which frames are real."""
    grid: tuple[int, int] | None = None
    """(height, width) in tokens with height * width == N, or None where tokens have no place in a picture."""

    def __post_init__(self) -> None:
        _check("feature tokens", self.tokens, 4, None, "[M,F,N,E]")
        _check("feature frames", self.frame_mask, 2, "bool", "[M,F]")
        _same("feature tokens and frames", self.tokens.shape[:2], self.frame_mask.shape, "[M,F]")
        if self.grid is not None and self.grid[0] * self.grid[1] != self.tokens.shape[2]:
            raise ShapeError(f"grid {self.grid} with N = {self.tokens.shape[2]}", "height * width == N")


@dataclass
class Embeds:
    """What every connector gives."""

    tokens: Tensor
    """[M,K,D]"""
    mask: Tensor
    """bool [M,K]: which places are real."""

    def __post_init__(self) -> None:
        _check("embeds", self.tokens, 3, None, "[M,K,D]")
        _check("embeds mask", self.mask, 2, "bool", "[M,K]")
        _same("embeds and mask", self.tokens.shape[:2], self.mask.shape, "[M,K]")


@dataclass(frozen=True)
class FeatureShape:
    """What an encoder says of its `Features`, which is all that a connector is built from."""

    width: int
    """E"""
    tokens: int
    """N, tokens per frame."""
    grid: tuple[int, int] | None = None
    frames: int = 1
    """Most frames an item may have."""
    layers: int = 1
    """Layers of the encoder that stand side by side in E, each `layer_width` wide."""
    extra: int = 0
    """Numbers after them, at the end of a token, that are no feature, such as where a tile's token belongs."""

    @property
    def layer_width(self) -> int:
        """Width of the features of one layer."""
        return (self.width - self.extra) // self.layers

    def __post_init__(self) -> None:
        if min(self.width - self.extra, self.tokens, self.frames, self.layers) < 1 or self.extra < 0:
            raise ShapeError(f"{self}", "width, tokens, frames and layers of at least 1")
        if self.layers * self.layer_width + self.extra != self.width:
            raise ShapeError(f"{self.layers} layers in {self.width - self.extra} features", "as many for each layer")
        if self.grid is not None and self.grid[0] * self.grid[1] != self.tokens:
            raise ShapeError(f"grid {self.grid} with N = {self.tokens}", "height * width == N")
