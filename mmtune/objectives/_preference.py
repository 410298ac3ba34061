"""Losses of preferences as functions of log-probabilities, without a model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def dpo(chosen: Tensor, rejected: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Direct preference optimization (Rafailov et al. 2023, equation 7), for each pair.

    Args:
        chosen, rejected: float [n], log pi(y|x) - log pi_ref(y|x) of the preferred answer, and of the other.
        beta: how much a difference counts, and so how closely the model is held to the reference.
        label_smoothing: part of the preferences that are the wrong way round (conservative DPO, Mitchell 2023).

    Returns:
        float [n]; log 2 where the model is the reference.
    """
    logits = beta * (chosen - rejected)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
