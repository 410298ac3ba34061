"""One item of media on its way to the language model: decoded and prepared, encoded, or looked up where it was encoded
before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from mmtune import media
from mmtune.types import Kind, MediaRef

if TYPE_CHECKING:
    import numpy as np

    from mmtune.errors import Note


class BranchLike(Protocol):
    """What is needed of a branch: an `Encoder`, a `Connector`, and the kinds of media that go there."""

    encoder: Any
    connector: Any
    kinds: tuple[Kind, ...]


class FeatureStore(Protocol):
    """Features of frozen encoders, kept somewhere."""

    def get(self, branch: str, ref: MediaRef) -> Tensor | None:
        """The features [F,N,E] of an item, or none for a branch that is not kept."""


def prepare_item(
    encoder: Any,
    ref: MediaRef,
    limits: media.Limits | None = None,
    rng: np.random.Generator | None = None,
    notes: Counter[Note] | None = None,
) -> Tensor:
    """What an encoder makes of a decoded item, [F,...]; what was unusual is counted in `notes`. Raises MediaError.

    Args:
        rng: randomness of frames, crops and views; none for none.
    """
    sampling = encoder.sampling(ref.kind)
    if rng is not None and sampling.draws:
        sampling = replace(sampling, seed=int(rng.integers(2**31)))
    found = media.load(ref, sampling, limits)
    if notes is not None:
        notes.update(found.notes)
    return encoder.prepare(found, rng)


def device_of(encoder: Any) -> torch.device:
    return next((parameter.device for parameter in encoder.parameters()), torch.device("cpu"))


def encode_items(encoder: Any, x: Tensor) -> Tensor:
    """Prepared items of as many frames, [M,F,...], to features [M,F,N,E] on the encoder's device, without gradient."""
    x = x.to(device_of(encoder))
    was = encoder.training
    if was:
        encoder.eval()
    try:
        with torch.no_grad():
            return encoder(x, torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)).tokens
    finally:
        if was:
            encoder.train()


def encode_item(encoder: Any, item: Tensor) -> Tensor:
    """A prepared item [F,...] to features [F,N,E], as `encode_items`."""
    return encode_items(encoder, item[None])[0]


def set_features(
    model: Any, processors: Sequence[Any], store: FeatureStore | None, branches: Iterable[str] | None = None
) -> None:
    """From now on these processors take features out of a store, and the branches named, or all, expect them."""
    for processor in processors:
        processor.features = store
    for name in model.branches if branches is None else branches:
        model.branches[name].cached = True


@contextmanager
def use_features(
    model: Any, processors: Sequence[Any], store: FeatureStore | None, branches: Iterable[str] | None = None
) -> Iterator[None]:
    """As `set_features` within; afterwards all is as before."""
    before = [(one, "features", one.features) for one in processors]
    before += [(one, "cached", one.cached) for one in model.branches.values()]
    set_features(model, processors, store, branches)
    try:
        yield
    finally:
        for one, name, value in before:
            setattr(one, name, value)
