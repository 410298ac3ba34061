"""What comes out of the layers of a model, told while it runs: hooks for the time of one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from mmtune.errors import ModelError
from mmtune.llm.base import Tap


@contextmanager
def tapped(layers: Sequence[nn.Module], tap: Tap) -> Iterator[None]:
    """Call `tap` with the number and the output of each of these layers that runs inside.

    Raises ModelError for layers that are compiled: a compiled layer keeps the hooks of its first call.
    """
    if any(layer._compiled_call_impl is not None for layer in layers):
        raise ModelError(
            seen="run.compile with a fusion that reads what comes out of the layers",
            expected="layers that are not compiled",
            hint="run.compile=false",
        )
    with ExitStack() as stack:
        for number, layer in enumerate(layers):
            stack.callback(layer.register_forward_hook(_hook(number, tap)).remove)
        yield


def _hook(number: int, tap: Tap) -> Any:
    def hook(layer: nn.Module, args: Any, output: Any) -> None:
        tap(number, output[0] if isinstance(output, tuple) else output)

    return hook
