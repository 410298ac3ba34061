"""A reference model that takes the memory of what trains only: a frozen copy of that, swapped in for one pass.

It serves preferences and whatever else holds a model to what it was. With adapters it is the model without what they
learned; with connectors or full tuning it is the model as it began. Weights that are cut over ranks stay cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mmtune.errors import CheckpointError
from mmtune.params import Named
from mmtune.sharded import like

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel


class Reference:
    """The weights that a model has now, as far as they train.

    Args:
        groups: group to what it trains; of all groups, for the others move the model too.
    """

    def __init__(self, groups: Mapping[str, Named]) -> None:
        self._trained = {name: parameter for named in groups.values() for name, parameter in named}
        self._held = {name: parameter.detach().clone() for name, parameter in self._trained.items()}

    @contextmanager
    def swapped_in(self, model: MultimodalModel) -> Iterator[None]:
        """Within, the model has the weights of the reference, draws nothing (eval mode) and makes no gradient.

        Weights are changed in place, so a pass whose backward pass is still to come has to follow, not to precede.
        """
        training = model.training
        self._swap()
        try:
            model.train(False)
            with torch.no_grad():
                yield
        finally:
            self._swap()
            model.train(training)

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._trained.items():
            held, now = self._held[name], parameter.clone()
            parameter.copy_(held)
            held.copy_(now)
        torch.clear_autocast_cache()  # it holds weights in two bytes, of each tensor, whatever numbers it has by now

    def state(self) -> dict[str, Tensor]:
        """The weights by the names of their parameters."""
        return dict(self._held)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave. Raises CheckpointError for other names or shapes."""
        wrong = sorted(tensors.keys() ^ self._held.keys())
        wrong += [n for n in tensors.keys() & self._held.keys() if tensors[n].shape != self._held[n].shape]
        if wrong:
            raise CheckpointError(
                seen=f"weights of a reference for {', '.join(wrong[:5])} ({len(wrong)} in all)",
                expected="those that this recipe trains",
                hint="the model of this recipe is not the one that was saved",
            )
        for name, tensor in tensors.items():
            self._held[name].copy_(like(tensor, self._held[name]))
