"""The whole model: branches of encoder and connector, a language model, and the fusion between them.

encode, connect, fuse, read. Nothing here changes a length: the processor has settled them, and the fusion refuses what
does not fit. Parameter names are `branches.NAME.encoder.*`, `branches.NAME.connector.*`, `llm.*` and `fusion.*`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmtune import bounds, random_state, registry
from mmtune.connectors.base import Connector
from mmtune.encoders.base import Encoder
from mmtune.errors import ConfigError, ModelError
from mmtune.fusion.base import Fusion
from mmtune.items import encode_item
from mmtune.llm.base import LLM
from mmtune.types import Batch, Embeds, Features, Kind, Media

if TYPE_CHECKING:
    from mmtune.recipe import ModelSection

LOGITS = 1 << 24
"""Most logits held at once, in numbers; 64 MiB in float32."""

WORDS = 4096
"""Word embeddings that are looked at for their scale."""

FROZEN_SEED = 0
"""Seed of what an encoder or a language model draws at random. A run holds a checksum of these numbers and does not
store them, so it must never change."""


class Branch(nn.Module):
    """An encoder with its connector, and the kinds of media that go there.

    With `cached` set, batches bring the encoder's features [M,F,N,E] instead of prepared media, and the encoder is not
    run: a frozen encoder always says the same of the same item.
    """

    def __init__(self, encoder: Encoder, connector: Connector, kinds: tuple[Kind, ...] | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.connector = connector
        self.kinds = tuple(encoder.kinds if kinds is None else kinds)
        self.cached = False
        self._black_image: dict[bool, Tensor] = {}
        strange = sorted(set(self.kinds) - set(encoder.kinds))
        if strange:
            raise ConfigError(
                f"a branch for {', '.join(strange)}, with an encoder for {', '.join(encoder.kinds)}",
                "kinds that the encoder takes",
            )

    @property
    def encoder_trains(self) -> bool:
        """Whether a parameter of the encoder does."""
        return any(parameter.requires_grad for parameter in self.encoder.parameters())

    def black_image(self) -> Tensor:
        """One frame of zeros in the place of a prepared picture, [1,...]; its features [1,N,E] where those are stored.

        Made once, on the CPU. Published LLaMA-Adapter V2 weights are shown it where a conversation has no picture.
        """
        if self.cached not in self._black_image:
            encoder = self.encoder
            black = Media("image", torch.zeros(1, 3, 8, 8, dtype=torch.uint8), origin="nothing")
            item = torch.zeros_like(encoder.prepare(black))
            if self.cached:
                # kept beyond the call, also of one in inference mode, whose tensors no later training could use
                with torch.inference_mode(False), torch.no_grad():
                    item = encode_item(encoder, item).cpu().half()  # as they are stored
            self._black_image[self.cached] = item
        return self._black_image[self.cached]

    def dummy_features(self) -> Features:
        """The features of one item of one frame that shows nothing: what runs where a batch has no item."""
        parameter = next(self.connector.parameters())
        encoder = self.encoder
        shape = (1, 1, encoder.tokens_per_frame, encoder.width)
        frames = torch.ones(1, 1, dtype=torch.bool, device=parameter.device)
        return Features(torch.zeros(shape, dtype=parameter.dtype, device=parameter.device), frames, encoder.grid)


class MultimodalModel(nn.Module):
    """Branches, language model and fusion.

    Encoders stay in eval mode whatever happens, but for what they name in `train_mode_modules`. There and elsewhere
    `train()` reaches what has parameters to train, so that dropout inside a frozen part never wakes up; call it after
    trainability is settled.
    """

    def __init__(
        self, branches: dict[str, Branch], llm: LLM, fusion: Fusion, tuned: dict[str, list[str]] | None = None
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleDict(branches)
        self.llm = llm
        self.fusion = fusion
        self.tuned = tuned or {}
        """Name of a tuner to the full names of the parameters it added or opened."""
        self.train(self.training)

    @property
    def device(self) -> torch.device:
        return next(self.llm.parameters()).device

    def train(self, mode: bool = True) -> MultimodalModel:
        super().train(False)
        self.training = mode
        if mode:
            for part in (self.llm, self.fusion, *(branch.connector for branch in self.branches.values())):
                _wake(part)
            for branch in self.branches.values():
                for name in branch.encoder.train_mode_modules:
                    if isinstance(part := getattr(branch.encoder, name), nn.Module):
                        _wake(part)
        return self

    def encode(self, batch: Batch, known: Mapping[str, Features] | None = None) -> dict[str, Features]:
        """Features of every branch that the batch has items of.

        Without gradient, unless a parameter of the encoder is trained. Where a trained encoder has nothing to do in
        this batch, `forward` sees to it that it still takes part in the backward pass.

        Args:
            known: features of some branches, which are not encoded again.
        """
        known = known or {}
        return {name: known[name] if name in known else self._encode(batch, name) for name in batch.media}

    def frozen_features(self, batch: Batch) -> dict[str, Features]:
        """Features of the branches whose encoder does not train, for several passes over one batch."""
        return {name: self._encode(batch, name) for name in batch.media if not self._branch(name).encoder_trains}

    def _encode(self, batch: Batch, name: str) -> Features:
        branch, x, frames = self._branch(name), batch.media[name], batch.frame_mask[name]
        if branch.cached:
            return _stored(name, branch, x, frames)
        with nullcontext() if branch.encoder_trains else torch.no_grad():
            return branch.encoder(x, frames)

    def connect(self, features: dict[str, Features]) -> dict[str, Embeds]:
        """Embeddings of every branch with features, and a blank item times zero for every other trainable one.

        The blank item makes every process of a run compute the same modules in every step. It has no real token
        (mask all False).
        """
        embeds = {name: self._branch(name).connector(given) for name, given in features.items()}
        if torch.is_grad_enabled():
            for name, branch in self.branches.items():
                if name not in embeds and any(parameter.requires_grad for parameter in branch.parameters()):
                    embeds[name] = _dummy_embeds(branch)
        return embeds

    def fuse(self, batch: Batch, embeds: dict[str, Embeds], cache: Any = None) -> Tensor:
        """Embeddings and tokens through the language model -> hidden [B,T,D]."""
        dummies = {name: given for name, given in embeds.items() if name not in batch.media}
        real = {name: _by_slot(given, batch.items.get(name)) for name, given in embeds.items() if name in batch.media}
        hidden = self.fusion(self.llm, batch, real, cache)
        for given in dummies.values():
            hidden = hidden + given.tokens.sum().to(hidden.dtype) * 0
        return hidden

    def forward(self, batch: Batch, known: Mapping[str, Features] | None = None) -> Tensor:
        """hidden [B,T,D], after the last norm of the language model; `known` as in `encode`."""
        return self.fuse(batch, self.connect(self.encode(batch, known)))

    def over_logits(self, function: Callable[..., Tensor], hidden: Tensor, *given: Tensor) -> list[Tensor]:
        """`function(logits, *given)` for every piece of the rows, in order; nothing for no row.

        No more than `LOGITS` numbers of logits are held at once: where that takes several pieces, each is computed
        again in the backward pass.

        Args:
            function: float32 [m,V], and as many rows of everything `given` -> a tensor.
            hidden: [n,D], after the last norm of the language model.
            given: [n,...] each.
        """

        def piece(hidden: Tensor, *given: Tensor) -> Tensor:
            return function(self.llm.head(hidden).float(), *given)

        if not len(hidden):
            return []
        size = max(1, LOGITS // self.llm.tokenizer.vocabulary)
        if len(hidden) <= size:
            return [piece(hidden, *given)]
        pieces = zip(*(tensor.split(size) for tensor in (hidden, *given)), strict=True)
        return [checkpoint(piece, *one, use_reentrant=False) for one in pieces]

    def token_log_probs(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """hidden [n,D], int64 labels [n] -> float32 [n]: the log-probability (nats) of each label, in pieces."""
        pieces = self.over_logits(_log_probs, hidden, labels)
        return torch.cat(pieces) if pieces else hidden.sum(-1).float()

    def _branch(self, name: str) -> Branch:
        if name not in self.branches:
            raise ModelError(
                seen=f"a batch with items for branch {name!r}",
                expected=f"one of {', '.join(self.branches) or 'no branches'}",
                hint="make examples and model from the same recipe",
            )
        return self.branches[name]


def _log_probs(logits: Tensor, labels: Tensor) -> Tensor:
    return -F.cross_entropy(logits, labels, reduction="none")


def _stored(name: str, branch: Branch, x: Tensor, frames: Tensor) -> Features:
    encoder = branch.encoder
    if x.ndim != 4 or x.shape[2:] != (encoder.tokens_per_frame, encoder.width):
        raise ModelError(
            seen=f"stored features of branch {name}: {list(x.shape)}",
            expected=f"[M,F,{encoder.tokens_per_frame},{encoder.width}]",
            hint="make the feature cache again, or set `cached` of the branch to False",
        )
    dtype = next((parameter.dtype for parameter in branch.connector.parameters()), torch.float32)
    return Features(x.to(dtype), frames, encoder.grid)


def _by_slot(embeds: Embeds, items: Tensor | None) -> Embeds:
    """The embeddings of the item of each slot; `items` [slots] is none where each item has one slot."""
    return embeds if items is None else Embeds(embeds.tokens[items], embeds.mask[items])


def _dummy_embeds(branch: Branch) -> Embeds:
    """One blank item through the connector, times zero, tied to what is trained in the encoder."""
    if any(True for _ in branch.connector.parameters()):
        tokens = branch.connector(branch.dummy_features()).tokens * 0
    else:
        tokens = torch.zeros(1, 1, branch.connector.llm_width, device=next(branch.encoder.parameters()).device)
    for parameter in branch.encoder.parameters():
        if parameter.requires_grad:
            tokens = tokens + parameter.sum().to(tokens.dtype) * 0
    return Embeds(tokens, torch.zeros(tokens.shape[:2], dtype=torch.bool, device=tokens.device))


def _wake(module: nn.Module) -> bool:
    """Put the parts that train into training mode; returns whether all parameters of the module do.

    A part without parameters, such as a dropout, follows its surroundings: it wakes if a neighbour trains whole. So
    the dropout of a LoRA beside a frozen matrix is on, and the one of a frozen attention is off.
    """
    children = list(module.children())
    whole = [_wake(child) for child in children if _has_any(child)]
    own = [parameter.requires_grad for parameter in module.parameters(recurse=False)]
    everything = [*whole, *own]
    if everything and all(everything):
        nn.Module.train(module, True)
        return True
    if any(everything):
        for child in children:
            if not _has_any(child):
                nn.Module.train(child, True)
    return False


def _has_any(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def build(
    section: ModelSection, weights: bool = True, device: str | torch.device = "cpu", seed: int = 0
) -> MultimodalModel:
    """The model of a recipe's `model` section.

    Encoders and the language model come frozen, but for what tuners added or opened; connectors and the fusion come
    trainable. Groups have the last word, see `mmtune.params`. The model comes in eval mode.

    Args:
        weights: read the weights of encoders and language model; otherwise they are random.
        device: where it ends up; "meta" makes names and shapes only.
        seed: what tuners, connectors and the fusion, in this order, draw their first numbers from. Encoders and the
            language model draw theirs from a seed that is the same in every run: a run stores what it trains, and finds
            the frozen rest again. The caller's random state is neither used nor changed.

    Raises:
        ConfigError, CheckpointError, ModelError: what the parts raise.
    """
    device, room = torch.device(device), bounds.Room()
    weights = weights and device.type != "meta"
    for one in section.branches.values():  # a library's constants are made on import, and not on the meta device
        registry.find("encoders", one.encoder.name)
    # The random weights of a large model that is read from disk a moment later are not worth drawing.
    with torch.device("meta") if weights or device.type == "meta" else nullcontext():
        llm = part("llm", section.llm, room)
    if weights:
        room.require("llm", llm, bounds.stored(section.llm))
        _load_weights(llm)
    llm.requires_grad_(False)
    with device if device.type == "meta" else nullcontext():
        encoders = {
            name: encoder(f"branches.{name}.encoder", one.encoder, weights, room)
            for name, one in section.branches.items()
        }
        with room.limited("tuners, connectors and fusion"), random_state.seeded(seed):
            tuned = tune(llm, section.tuners)
            branches = {name: _branch(one, encoders[name], llm.width) for name, one in section.branches.items()}
            fusion = registry.find("fusion", section.fusion.name)(section.fusion, llm.width, llm.depth, llm.heads)
    if branches and device.type != "meta":
        scale = _scale(llm)
        for branch in branches.values():
            branch.connector.calibrate(scale)
    fusion.check(llm, {name: branch.connector.tokens_out(1) for name, branch in branches.items()})
    return MultimodalModel(branches, llm, fusion, tuned).to(device).eval()


@torch.no_grad()
def _scale(llm: LLM) -> float:
    """Root mean square of the word embeddings, over up to `WORDS` of them spread evenly."""
    size = llm.tokenizer.vocabulary
    ids = torch.arange(0, size, max(1, size // WORDS), device=next(llm.parameters()).device)
    return float(llm.embed(ids).float().square().mean().sqrt())


def tune(llm: LLM, tuners: Iterable[Any]) -> dict[str, list[str]]:
    """Apply the tuners in order -> tuner name to full parameter names, all of them trainable."""
    opened: dict[str, list[nn.Parameter]] = {}
    for config in tuners:
        names = registry.find("tuners", config.name)(config).apply(llm)
        parameters = dict(llm.named_parameters())
        opened.setdefault(config.name, []).extend(parameters[name] for name in names)
    # A later tuner may have put a layer of its own around an earlier one's, so names are taken at the end.
    names_now = {id(parameter): f"llm.{name}" for name, parameter in llm.named_parameters()}
    for parameters_of in opened.values():
        for parameter in parameters_of:
            parameter.requires_grad_(True)
    return {name: [names_now[id(parameter)] for parameter in several] for name, several in opened.items()}


def part(name: str, config: Any, room: bounds.Room | None = None) -> Any:
    """An encoder or a language model from its settings, within bounds; its weights are not read yet.

    What it draws is the same every time, whatever else is built and in whatever order.

    Args:
        name: where the recipe has it: `llm`, `branches.NAME.encoder`.
        room: that of the whole model; of its own when not given.

    Raises ConfigError, CheckpointError, ModelError: what the part raises, or one that there is no room for.
    """
    found = registry.find("llm" if name == "llm" else "encoders", config.name)

    def make() -> Any:
        with random_state.seeded(FROZEN_SEED):
            return found(config)

    return (room or bounds.Room()).build(name, make, bounds.stored(config))


def _load_weights(module: Encoder | LLM) -> None:
    """Read the weights of a part; one that has none may draw them here."""
    with random_state.seeded(FROZEN_SEED):
        module.load_weights()


def encoder(name: str, config: Any, weights: bool = True, room: bounds.Room | None = None) -> Encoder:
    """An encoder as a model has it, frozen: `part` with its weights read. Raises as `part` does."""
    made = part(name, config, room)
    if weights:
        _load_weights(made)
    return made.requires_grad_(False)


def _branch(section: Any, encoder: Encoder, width: int) -> Branch:
    connector = registry.find("connectors", section.connector.name)(section.connector, encoder.shape, width)
    connector.check(encoder)
    return Branch(encoder, connector, section.kinds)
