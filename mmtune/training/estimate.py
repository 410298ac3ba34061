"""What a run will take, by arithmetic: tokens, memory of each device, time of a step.

Weights, gradients and optimizer states are counted. Activations follow from what the operations of a Llama layer keep
for the backward pass: a frozen matrix keeps nothing, a trained one its input. Not counted: other models of a recipe,
what encoders, connectors and fusions keep or need for a moment, scales and biases that a tuner puts after matrices,
what the allocator loses, libraries of the device. Times are floating point operations divided by what the device is
said to do.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn
from torch.nn import Parameter

from mmtune import registry
from mmtune.model import LOGITS
from mmtune.params import ParameterGroup

if TYPE_CHECKING:
    from mmtune.recipe import Recipe

Strategy = Literal["replicate", "shard", "shard_all"]
Groups = Mapping[str, Sequence[tuple[str, Parameter]]]

COPIES = 3
"""Of each logit, four bytes each, while its loss is made."""


@dataclass(frozen=True)
class Shape:
    """Numbers of parameters, by where they are and whether they train."""

    layers_frozen: int
    """In the decoder layers of the language model: what `shard` cuts."""
    layers_trained: int
    """In the same layers: what `shard_all` cuts too."""
    rest_frozen: int
    rest_trained: int
    matrices_trained: int
    """Trained numbers of the layers in whole matrices."""
    pairs: int
    """Widths, summed over a layer, of what goes into low-rank pairs."""
    depth: int
    width: int
    inner: int
    """Width inside the feed-forward part."""
    vocabulary: int
    head: int
    """Parameters of the head."""
    states: int
    """Bytes that optimizers keep, and objectives that hold a copy of what trains."""
    states_cut: int
    """Of these, what `shard_all` cuts: in the same layers, by optimizers that work on parts."""
    backward: bool = True
    """Whether a gradient goes through the layers."""

    @property
    def trained(self) -> int:
        return self.layers_trained + self.rest_trained

    @property
    def frozen(self) -> int:
        return self.layers_frozen + self.rest_frozen

    @property
    def layers(self) -> int:
        return self.layers_frozen + self.layers_trained


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    weights: int
    gathered: int
    """Layers put together for the moment, where they are cut."""
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gathered + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True)
class Time:
    """Seconds of a step."""

    compute: float
    talk: float
    """Between devices, if none of it is hidden behind the computing."""


@dataclass(frozen=True)
class Estimate:
    """What a run says before it starts. Numbers of one rank, bytes and tokens."""

    steps: int
    tokens_per_step: int
    samples: dict[str, int]
    """Samples of each stream in its data."""
    shape: Shape
    memory: Memory

    @property
    def tokens(self) -> int:
        """Places in the rows of all steps, padding included: an upper bound."""
        return self.steps * self.tokens_per_step

    def lines(self) -> list[str]:
        data, held = ", ".join(f"{name} {count:,}" for name, count in self.samples.items()), self.memory
        return [
            f"data      samples in each stream: {data}",
            f"tokens    at most {self.tokens:,} ({self.steps:,} steps of at most {self.tokens_per_step:,})",
            f"weights   {self.shape.trained:,} train, {self.shape.frozen:,} are frozen",
            f"memory    about {size(held.total)}: weights {size(held.weights + held.gathered)}, gradients and "
            f"optimizers {size(held.gradients + held.optimizer)}, activations roughly {size(held.activations)}",
        ]


def shape_of(model: Any, groups: Groups, settings: Mapping[str, ParameterGroup]) -> Shape:
    """Count a model as built, on any device.

    Args:
        settings: the section `groups` of the recipe.
    """
    trained = {id(parameter) for named in groups.values() for _, parameter in named}
    layers = model.llm.layers()
    inside = {id(p): p for layer in layers for p in layer.parameters()}
    everything = {id(p): p.numel() for p in model.parameters()}
    mine = sum(p.numel() for key, p in inside.items() if key in trained)
    own = sum(everything[key] for key in everything.keys() & trained)
    matrices = [w for layer in layers for w in _matrices(layer)]
    pairs = [m.in_features for layer in layers for n, m in layer.named_modules() if "lora_A." in n]
    states = {name: _states(named, settings[name], inside) for name, named in groups.items()}
    return Shape(
        layers_frozen=sum(p.numel() for p in inside.values()) - mine,
        layers_trained=mine,
        rest_frozen=sum(everything.values()) - own - (sum(p.numel() for p in inside.values()) - mine),
        rest_trained=own - mine,
        matrices_trained=sum(w.numel() for w in matrices if id(w) in trained),
        pairs=sum(pairs) // len(layers),
        depth=model.llm.depth,
        width=model.llm.width,
        inner=model.llm.inner_width,
        vocabulary=model.llm.tokenizer.vocabulary,
        head=model.llm.width * model.llm.tokenizer.vocabulary,
        states=sum(whole for whole, _ in states.values()),
        states_cut=sum(cut for _, cut in states.values()),
        backward=model.fusion.through_llm,
    )


def _states(named: Sequence[tuple[str, Parameter]], group: ParameterGroup, inside: Collection[int]) -> tuple[int, int]:
    """Bytes that the optimizer of a group keeps, and of these what can be cut: for parameters whose id is `inside`."""
    optimizer = registry.find("optimizers", group.optimizer.name)(group.optimizer)
    whole = cut = 0
    for name, parameter in named:
        # what trains is held in float32, whatever it was loaded in
        kept = optimizer.state_of(name, torch.empty(parameter.shape, dtype=torch.float32, device="meta"))
        size = sum(tensor.nbytes for tensor in kept.values())
        whole += size
        cut += size * (optimizer.elementwise and id(parameter) in inside)
    return whole, cut


def _matrices(layer: nn.Module) -> list[Parameter]:
    return [m.weight for name, m in layer.named_modules() if isinstance(m, nn.Linear) and "lora" not in name]


def memory_of(
    shape: Shape,
    tokens: int,
    strategy: Strategy = "replicate",
    devices: int = 1,
    activation_checkpointing: bool = False,
    bf16: bool = False,
    forward_only: bool = False,
) -> Memory:
    """Bytes of one device.

    Args:
        tokens: tokens of one micro-step on this device.
        bf16: frozen weights and activations in two bytes; what trains stays in four.
        forward_only: no backward pass: a copy of what trains beside the gradient, and one layer's activations.
    """
    small = 2 if bf16 else 4
    frozen_cut = devices if strategy != "replicate" else 1
    trained_cut = devices if strategy == "shard_all" else 1
    weights = shape.rest_frozen * small + shape.rest_trained * 4
    weights += shape.layers_frozen * small // frozen_cut + shape.layers_trained * 4 // trained_cut
    one = (shape.layers_frozen * small * (frozen_cut > 1) + shape.layers_trained * 4 * (trained_cut > 1)) // shape.depth
    trained = shape.rest_trained + shape.layers_trained // trained_cut
    return Memory(
        weights=weights,
        gathered=2 * one,  # the one that is computed, and the next
        gradients=trained * 4 * (2 if forward_only else 1),
        optimizer=shape.states - shape.states_cut + shape.states_cut // trained_cut,
        activations=activations(shape, tokens, activation_checkpointing, bf16, forward_only),
    )


def activations(
    shape: Shape, tokens: int, activation_checkpointing: bool = False, bf16: bool = False, forward_only: bool = False
) -> int:
    """Bytes kept for the backward pass by the decoder layers, and by one piece of the loss.

    Forward only, they are those of one layer, as an upper bound.
    """
    small = 2 if bf16 else 4
    layer = layer_activations(shape, bf16)
    casts = shape.matrices_trained * 2 if bf16 else 0  # autocast's copies of trained matrices
    kept = tokens * shape.depth * layer + casts
    if forward_only:
        kept = tokens * layer
    elif activation_checkpointing:
        kept = tokens * (shape.depth * shape.width * small + layer) + casts // shape.depth
    if not shape.backward:
        kept = 0
    return int(kept + COPIES * 4 * min(tokens * shape.vocabulary, LOGITS))


def layer_activations(shape: Shape, bf16: bool = False) -> float:
    """Bytes that one layer keeps for each token.

    Two norms keep their input in float32; attention keeps queries, keys, values and its result; the feed-forward part
    keeps what goes into its activation, what comes out, and what that is multiplied with. Trained norms keep their
    result before the scale, and trained matrices their inputs: in float32 one for queries, keys and values and one for
    the two of the feed-forward part; under autocast each of these five has a copy of its own. Low-rank pairs keep
    theirs in float32.
    """
    small = 2 if bf16 else 4
    norms, attention, feed = 2 * 4 * shape.width, 4 * small * shape.width, 3 * small * shape.inner
    share = shape.matrices_trained / max(1, shape.layers)
    inputs = small * ((7 if bf16 else 4) * shape.width + shape.inner)
    return norms + attention + feed + share * inputs + 4 * shape.pairs


def time_of(
    shape: Shape,
    tokens: int,
    length: int,
    strategy: Strategy,
    devices: int,
    activation_checkpointing: bool,
    bf16: bool,
    accumulate: int,
    flops: float,
    link: float,
    directions: int = 0,
) -> Time:
    """Seconds of a step.

    Args:
        tokens: tokens of one micro-step on this device.
        length: tokens of a row, each of which sees half of the others on average.
        flops: floating point operations per second that the device reaches.
        link: bytes per second between this device and the others.
        directions: of two forward passes each, in place of forward and backward; 0 for those.
    """
    forward = 2 * (shape.layers + shape.head) + 2 * shape.depth * shape.width * length
    # backwards through everything, into the weights only where they train, and forward again where nothing was kept
    passes = forward * (3 if activation_checkpointing else 2) + 2 * shape.layers_trained
    if not shape.backward:
        passes = forward
    small = 2 if bf16 else 4
    part = (devices - 1) / devices
    frozen, trained = shape.layers_frozen * small, shape.layers_trained * 4
    if directions:  # only losses are sent, and what is cut
        cut = {"replicate": 0, "shard": frozen, "shard_all": frozen + trained}[strategy]
        times = accumulate * 2 * directions
        return Time(times * tokens * forward / flops, times * cut * part / link)
    moved = 2 * 4 * shape.trained * part  # an all-reduce sends everything twice
    if strategy == "shard":
        moved += accumulate * 2 * frozen * part
    if strategy == "shard_all":
        moved = 2 * 4 * shape.rest_trained * part
        moved += accumulate * part * (2 * (frozen + trained) + trained)
    return Time(accumulate * tokens * passes / flops, moved / link)


def estimate(
    model: Any,
    groups: Groups,
    samples: Mapping[str, int],
    steps: int,
    recipe: Recipe,
    devices: int = 1,
) -> Estimate:
    """What a run of a model as built takes.

    Args:
        devices: ranks of the run.
    """
    run, shape = recipe.run, _with_copies(shape_of(model, groups, recipe.groups), recipe)
    tokens = tokens_of(run, devices)
    forward_only, bf16 = run.gradient.name == "two_point", run.precision == "bf16"
    held = memory_of(shape, tokens, run.strategy, devices, run.activation_checkpointing, bf16, forward_only)
    return Estimate(steps, run.batch_tokens * run.accumulate, dict(samples), shape, held)


def _with_copies(shape: Shape, recipe: Recipe) -> Shape:
    """With what objectives hold of all that trains, among the states: float32, and cut as the weights are."""
    objectives = [registry.find("objectives", stream.objective.name) for stream in recipe.streams.values()]
    each = 4 * sum(objective.copies for objective in objectives)
    states, cut = (shape.layers_trained + shape.rest_trained) * each, shape.layers_trained * each
    return replace(shape, states=shape.states + states, states_cut=shape.states_cut + cut)


def tokens_of(run: Any, devices: int) -> int:
    """Places of one micro-step on one device: its rows, whole ones."""
    rows = max(1, run.batch_tokens // run.length)
    return -(-rows // devices) * run.length


def size(count: float) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
