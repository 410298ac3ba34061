"""The contracts of language models and their tokenizers.

The attention mask is always built from `segments` (block causal). With a cache, `segments=None` means one segment in
which every earlier cached token is visible.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mmtune.config import Config
from mmtune.errors import ModelError

Before = Literal["start", "mark", "text"]
"""What stands before a piece of text: nothing or media; a control token; other text that it goes on from."""


class LLMConfig(Config):
    """What every language model's config has."""

    name: str
    """Name of the family: its file in this room, or package.module:Class."""


class Tokenizer(ABC):
    """Text to ids and back. Two doors: `encode` for what people and data say, `encode_special` for what templates
    say."""

    pad: int
    """Id written at padding and at media tokens."""
    bos: int | None
    eos: int | None
    vocabulary: int
    """Number of ids, control tokens included."""
    special_ids: frozenset[int] = frozenset()
    """Ids that only `encode_special` gives: begin, end and turn marks. No text has them, whatever it says."""

    @abstractmethod
    def encode(self, text: str, after: Before = "start") -> list[int]:
        """Ids of plain text. A control string inside becomes ordinary text; no begin or end mark is added.

        `after` is what stands before it: a tokenizer that puts a space before a text does so after "start", after
        "mark" if it does so when it reads a whole string, and never after "text". Raises DataError (bad_text).
        """

    @abstractmethod
    def encode_special(self, text: str, after: Before = "start") -> list[int]:
        """Ids of a template's piece, which may hold control tokens. `{bos}` and `{eos}` stand for those two marks."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens left out."""

    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 over everything that decides ids, in hex."""


class LLM(nn.Module):
    """A causal language model, cut open at the embedding and at the head."""

    Config: ClassVar[type[LLMConfig]] = LLMConfig

    width: int
    """D"""
    depth: int
    """Number of layers."""
    heads: int
    """Attention heads, H."""
    tokenizer: Tokenizer

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.config = config
        self.step_callbacks: dict[str, Any] = {}
        """What tuners want to do in every training step, see `mmtune.tuners.base.StepCallback`."""

    def load_weights(self) -> None:
        """Fill the structure from what the config names, strictly; seeded random weights where it names none.

        Raises:
            CheckpointError: files missing, or names or shapes that do not match, all listed.
        """
        raise NotImplementedError

    def checkpoint_activations(self) -> None:
        """Keep only the input of every layer for the backward pass from now on, and compute the rest again there.

        Raises ModelError when this model cannot.
        """
        raise ModelError(
            seen=f"run.activation_checkpointing with {type(self).__name__}",
            expected="a language model that can compute its layers again",
            hint="leave out run.activation_checkpointing",
        )

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """int64 [B,T] -> [B,T,D]"""
        raise NotImplementedError

    @abstractmethod
    def attention_modules(self) -> list[nn.Module]:
        """The attention modules, lowest first."""
        raise NotImplementedError

    def layers(self) -> list[nn.Module]:
        """The decoder layers, lowest first: what is cut over devices, and compiled, one by one."""
        raise NotImplementedError

    def decoder(self) -> nn.Module:
        """What runs all layers."""
        raise NotImplementedError

    @abstractmethod
    def new_cache(self) -> Any:
        """An empty cache of keys, values and segments; `cache.keep(rows)` drops the other rows."""
        raise NotImplementedError

    @abstractmethod
    def forward(self, x: Tensor, positions: Tensor, segments: Tensor | None, cache: Any = None) -> Tensor:
        """[B,T,D], int64 [B,T], int32 [B,T] or none -> hidden [B,T,D], after the last norm."""
        raise NotImplementedError

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """[...,D] -> logits [...,V]"""
        raise NotImplementedError


Contract = LLM
