"""A new order for each epoch, drawn for each sample by its name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmtune.data.orders.base import Order, OrderConfig, Samples


class Shuffle(Order):
    """Samples at random. One that is taken away changes the order of no other."""

    Config = OrderConfig
    even = True

    def keys(self, samples: Samples, seed: int, epoch: int) -> Sequence[np.ndarray]:
        return ()
