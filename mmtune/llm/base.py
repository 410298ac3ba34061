"""The contracts of language models and their tokenizers.

The attention mask is always built from `segments` (block causal). With a cache, `segments=None` means one segment in
which every earlier cached token is visible.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from mmtune.config import Config
from mmtune.errors import ModelError
from mmtune.layers.gated_prompts import GatedPrompts
from mmtune.llm._attention import AttentionTerm, Prefix

Before = Literal["start", "mark", "text"]
"""What stands before a piece of text: nothing or media; a control token; other text that it continues from."""

Ability = Literal["attention_terms", "prefix", "tap"]
"""What not every language model can be asked for, see `LLM.abilities`."""

Tap = Callable[[int, Tensor], None]
"""Called with the number of a layer, 0 the lowest, and what came out of it: [B,T,D], before the last norm."""


class LLMConfig(Config):
    """What every language model's config has."""

    name: str
    """Name of the family: its file in this room, or package.module:Class."""
    folder: str | None = None
    """Folder that its files are read from; null where they come from elsewhere."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type that the weights are opened in. Two bytes halve the memory; on a CPU they are slower. In training, frozen
    weights have `run.precision` and what trains is float32, whatever stands here; see `mmtune.dtypes`."""


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


class Cache(ABC):
    """What a language model keeps of the tokens that it has read."""

    def __init__(self) -> None:
        self.beside: dict[str, Tensor] = {}
        """What a network beside the model keeps, as its own keys and values: name to [B,...]. A fusion that has one
        reads and writes it; rows go with those of the model."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Keep these rows, int64 [B'], and drop the others. An entry calls this one for `beside`."""
        self.beside = {name: tensor[rows] for name, tensor in self.beside.items()}


class LLM(nn.Module):
    """A causal language model, cut open at the embedding and at the head."""

    Config: ClassVar[type[LLMConfig]] = LLMConfig
    abilities: ClassVar[frozenset[Ability]] = frozenset()
    """Arguments of `forward`, and places for what tuners add, that this model makes use of. `attention_terms`: terms
    added to attention, by the call or by `self.attention_terms`; `prefix`: keys and values before every segment, from
    `self.prefix`; `tap`: what comes out of each layer. Whoever needs one calls `require`."""

    width: int
    """D"""
    depth: int
    """Number of layers."""
    heads: int
    """Attention heads, H."""
    kv_heads: int
    """Heads of keys and values, h."""
    head_width: int
    """Width of a head, d."""
    inner_width: int
    """Width inside the feed-forward part of a layer."""
    tokenizer: Tokenizer

    def __init__(self, config: LLMConfig) -> None:
        super().__init__()
        self.config = config
        self.model: nn.Module | None = None
        """The model of transformers inside, which peft changes and published layouts are made of; None where there is
        no such thing."""
        self.folder: Path | None = None
        """Where its config.json and tokenizer lie; None where there is no folder."""
        self.step_callbacks: dict[str, Any] = {}
        """What tuners want to do in every training step, see `mmtune.tuners.base.StepCallback`."""
        self.attention_terms = nn.ModuleDict()
        """Modules that tuners add to attention, by layer number: (module, query, call) -> [B,T,H,d]."""
        self.prefix: nn.Module | None = None
        """Virtual tokens that a tuner puts before every segment, see `mmtune.tuners._prefix`."""
        self.prompts: GatedPrompts | None = None
        """Learned prompts that a tuner adds to attention."""

    def require(self, ability: Ability, who: str) -> None:
        """Raise ModelError where the model lacks what `who` needs of it."""
        if ability not in self.abilities:
            raise ModelError(
                seen=f"{who} with {type(self).__name__}, which has no {ability}",
                expected="a language model of transformers (llm: hf)",
            )

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
        """The attention modules, lowest first, as terms and prompts are given them."""
        raise NotImplementedError

    @abstractmethod
    def layers(self) -> list[nn.Module]:
        """The decoder layers, lowest first: what is cut over devices, and compiled, one by one."""
        raise NotImplementedError

    @abstractmethod
    def decoder(self) -> nn.Module:
        """What runs all layers."""
        raise NotImplementedError

    @abstractmethod
    def new_cache(self) -> Cache:
        """An empty cache of what is read."""
        raise NotImplementedError

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        segments: Tensor | None,
        cache: Any = None,
        attention_terms: Mapping[int, Sequence[AttentionTerm]] | None = None,
        tap: Tap | None = None,
    ) -> Tensor:
        """[B,T,D], int64 [B,T], int32 [B,T] or none -> hidden [B,T,D], after the last norm.

        Args:
            cache: what `new_cache` gave; the tokens of this call go on from those in it, and are added to it.
            attention_terms: terms added to the attention of the layers they name, in this call only.
            tap: called once for each layer, lowest first. It changes nothing here; a network beside the model keeps
                what it needs of earlier tokens in `cache.beside`.
        """
        raise NotImplementedError

    def keys_and_values(self, x: Tensor, positions: Tensor) -> Prefix:
        """Keys and values [B,h,T,d] of each layer: embeddings [B,T,D] at positions [B,T], with nothing before them.

        Part of the ability `prefix`; raises ModelError without it.
        """
        self.require("prefix", "keys and values of virtual tokens")
        raise NotImplementedError

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """[...,D] -> logits [...,V]"""
        raise NotImplementedError


Contract = LLM
