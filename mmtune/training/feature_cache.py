"""Features of frozen encoders, kept on disk and used instead of decoding and encoding."""

from __future__ import annotations

from collections.abc import Sequence

from mmtune.data.features import FeatureCache
from mmtune.data.loader import Stream
from mmtune.items import set_features
from mmtune.model import Branch
from mmtune.training.log import Progress
from mmtune.training.setup import Setup


def fill_feature_cache(setup: Setup, held_out: Sequence[Stream], progress: Progress) -> None:
    """Encode all that frozen encoders will be asked for, where the recipe keeps features, and use what is kept.

    Args:
        held_out: streams that are validated on, beside those that are trained on.
    """
    recipe, model = setup.recipe, setup.model
    if recipe.run.feature_cache is None:
        return
    frozen = {n: b for n, b in model.branches.items() if not any(p.requires_grad for p in b.encoder.parameters())}
    for name in [name for name, branch in frozen.items() if branch.encoder.draws]:
        progress.line(f"features of {name} are not kept: its encoder draws views, crops or frames again each time")
        del frozen[name]
    for other, asked in setup.others.models.items():
        for name in [name for name, b in frozen.items() if not _same_encoder(b, asked.branches[name])]:
            progress.line(f"features of {name} are not kept: model {other} has another encoder there")
            del frozen[name]
    if not frozen:
        return
    cache = FeatureCache(recipe.run.feature_cache, frozen, recipe.limits)
    streams = [*setup.loader.streams.values(), *held_out]
    if setup.runtime.is_main:
        progress.start("encoding media, once", sum(len(stream.corpus) for stream in streams))
        counts = cache.fill(streams, recipe.run.workers, progress=lambda done, _: progress.at(done))
        progress.stop()
        progress.line("features: " + ", ".join(f"{count} {what}" for what, count in counts.items()))
    setup.runtime.barrier()
    cache.reload()
    for asked in (model, *setup.others.models.values()):
        set_features(asked, [stream.processor for stream in streams], cache, frozen)
    if model.fusion.default_image_branch in frozen:  # here, because a data worker must not touch the device
        frozen[model.fusion.default_image_branch].black_image()


def _same_encoder(one: Branch, other: Branch) -> bool:
    """Whether features of one are those of the other, to the bit."""
    return one.encoder.fingerprint() == other.encoder.fingerprint()
