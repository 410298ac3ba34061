"""`mmtune plan`: memory and time of each device, by arithmetic, on the meta device."""

from __future__ import annotations

from dataclasses import dataclass

from mmtune import config

GB = 1e9
H100 = 989.0
"""10^12 operations per second of an H100 in bfloat16, the default of the command."""


@dataclass(frozen=True)
class Devices:
    """The devices of a run."""

    count: int
    memory: float
    """GB of each device."""
    tflops: float
    """Peak of each device in the precision of the run, 10^12 operations per second."""
    share: float
    """Fraction of the peak that a run reaches."""
    link: float
    """Bandwidth between devices, GB per second for each."""


def run(recipe: str, overrides: list[str], devices: Devices) -> None:
    """Print what each device holds and how long a step takes, for each strategy.

    Raises:
        ConfigError: a recipe that cannot be used, or groups that do not fit the model.
    """
    print("\n".join(lines(recipe, overrides, devices)))


def lines(recipe: str, overrides: list[str], devices: Devices) -> list[str]:
    """The printed lines of a plan."""
    from mmtune import model as models
    from mmtune.checkpoint.store import groups_of
    from mmtune.recipe import Recipe
    from mmtune.training import estimate

    loaded = config.load(Recipe, recipe, overrides)
    model = models.build(loaded.model, weights=False, device="meta")
    shape = estimate.shape_of(model, groups_of(model, loaded), loaded.groups)
    section, bf16 = loaded.run, loaded.run.precision == "bf16"
    rows = max(1, section.batch_tokens // section.length)
    tokens = estimate.tokens_of(section, devices.count)
    said = [
        f"{recipe}{''.join(f' {change}' for change in overrides)}",
        f"{shape.trained + shape.frozen:,} parameters, {shape.trained:,} train; in the {shape.depth} layers "
        f"{shape.layers_frozen:,} frozen and {shape.layers_trained:,} trained",
        f"{devices.count} devices of {devices.memory:g} GB, {devices.share:.0%} of {devices.tflops:g} TFLOPS, "
        f"{devices.link:g} GB/s between them; {section.precision}",
        f"a micro-step has {rows} rows of {section.length} tokens, {tokens:,} tokens on a device; a step has "
        f"{section.accumulate}",
    ]
    if loaded.models:
        said.append(f"note: the weights of {', '.join(loaded.models)} are not counted; each device holds them as well")
    if rows % devices.count:
        said.append(f"note: {rows} rows on {devices.count} devices leave some of them idle; raise run.batch_tokens")
    if not bf16 and devices.tflops == H100:
        said.append(f"note: {H100:g} TFLOPS are for bf16; say with --device-tflops what a device does in fp32")
    directions = section.gradient.directions if section.gradient.name == "two_point" else 0
    found = []
    for strategy in ("replicate", "shard", "shard_all") if shape.layers_frozen else ("replicate", "shard_all"):
        for again in (False,) if directions else (False, True):
            held = estimate.memory_of(shape, tokens, strategy, devices.count, again, bf16, directions > 0)
            flops, link = devices.tflops * devices.share * 1e12, devices.link * GB
            rest = (section.accumulate, flops, link, directions)
            time = estimate.time_of(shape, tokens, section.length, strategy, devices.count, again, bf16, *rest)
            found.append((strategy, "none" if directions else "again" if again else "kept", held, time))
    small = max(held.total for _, _, held, _ in found) < GB / 10  # a table of zeros would be useless
    unit, clock, size, second = ("MB", "ms", GB / 1e3, 1e-3) if small else ("GB", "s", GB, 1.0)
    sizes = ("weights", "gradients", "optimizer", "activations", f"sum {unit}")
    head = ("strategy", "layers", *sizes, "", f"compute {clock}", f"talk {clock}")
    table = [head]
    for strategy, layers, held, time in found:
        parts = (held.weights + held.gathered, held.gradients, held.optimizer, held.activations, held.total)
        part = held.total / (devices.memory * GB)
        fits = "fits" if part < 0.9 else "tight" if part < 1 else "no"
        numbers = [f"{one / size:.1f}" for one in parts]
        table.append((strategy, layers, *numbers, fits, f"{time.compute / second:.3f}", f"{time.talk / second:.3f}"))
    widths = [max(len(row[column]) for row in table) for column in range(len(head))]
    said += ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]
    return said
