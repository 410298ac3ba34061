"""What may be built: as much as files of weights hold, and what a machine has room for beside that.

A recipe or a folder from elsewhere says sizes, and memory would be taken before anybody sees that no weights fit them.
So everything is built here: on the meta device first, where a size costs nothing and only the number of parts counts,
and then for good when the sum fits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmtune import paths
from mmtune.errors import MmtuneError, ModelError
from mmtune.llm.base import LLM

TENSORS = 10_000
"""Most tensors made while one part is built: on the meta device, too, each takes kilobytes and time. The largest
published models have a few thousand."""
CALLS = 10
"""Most operations for each of them."""
FLOAT = 4
"""Bytes of a number of float32, in which everything is held that trains."""

Made = TypeVar("Made", bound=nn.Module)


def memory() -> int:
    """Bytes of main memory of this machine; a terabyte where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return 1 << 40


class Room:
    """What is left for a model beyond what files of weights hold: a quarter of the memory at first, because training
    takes four times what it trains."""

    def __init__(self) -> None:
        self.whole = self.left = memory() // 4

    def build(self, name: str, make: Callable[[], Made], stored: int = 0) -> Made:
        """A part, on the device that is chosen: planned on the meta device, compared with the room, made.

        Args:
            name: what it is, for messages, as the recipe spells it.
            stored: bytes of its files of weights.

        Raises ModelError: more than there is room for, or settings that nothing can be made of.
        """
        if torch.get_default_device().type != "meta":
            with torch.device("meta"), self.limited(name):
                planned = make()
            self.require(name, planned, stored)
            del planned
            with self.limited(name, counted=False):
                return make()
        with self.limited(name):
            return make()

    def require(self, name: str, part: nn.Module, stored: int) -> None:
        """Take the room for a part that is on the meta device. Raises ModelError where there is less."""
        tensors = {id(tensor): tensor for tensor in part.state_dict(keep_vars=True).values()}
        numbers = sum(tensor.numel() for tensor in tensors.values())
        frames = getattr(part, "max_frames", 1)
        item = math.prod(getattr(part, "input_shape", (0,)))
        tokens = getattr(part, "tokens_per_frame", 0) * getattr(part, "width", 0)
        self._fits(f"one item of {name}", FLOAT * frames * max(item, tokens))
        # a file has a byte at least for each number
        if isinstance(part, LLM) and 0 < stored < numbers:
            raise ModelError(
                f"{name}: {numbers:,} numbers by its config.json, beside {stored:,} bytes of weights",
                "weights for all of it",
                "check that config.json and the weights belong together",
            )
        self.take(name, FLOAT * max(0, numbers - stored), f", beside {stored / 1e9:.3g} GB of weights" * bool(stored))

    def take(self, name: str, size: int, beside: str = "") -> None:
        """Take room, bytes. Raises ModelError."""
        self._fits(name, size, beside)
        self.left -= size

    def _fits(self, name: str, size: int, beside: str = "") -> None:
        if size > self.left:
            raise ModelError(
                f"{name}: {size / 1e9:,.1f} GB by its settings{beside}",
                f"at most {self.left / 1e9:.1f} GB beyond what files of weights hold: what is left of a quarter of the "
                f"memory, {self.whole / 1e9:.1f} GB",
                "look at size, frames, layers, hidden, width, r and the like in the recipe and in config.json",
            )

    @contextmanager
    def limited(self, name: str, counted: bool = True) -> Iterator[None]:
        """Build within: bytes are refused before they are taken, and what a library says of sizes that make no sense
        comes as a ModelError.

        Args:
            counted: whether bytes count; not where `require` has counted them.
        """
        try:
            with _Limit(self, name, counted):
                yield
        except MmtuneError:
            raise
        except _LIBRARY as error:
            raise ModelError(
                f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
                "settings that a part can be made of",
                "look at its sizes in the recipe and in config.json; MMTUNE_DEBUG=1 shows where this happened",
            ) from error


def stored(config: Any) -> int:
    """Bytes of the safetensors that an entry of a recipe names, with those of entries inside it.

    A repository that is fetched by its name is taken to fill the memory.
    """
    tree = config if isinstance(config, Mapping) else config.model_dump()
    total = sum(stored(inner) for inner in tree.values() if isinstance(inner, Mapping))
    for key in ("weights", "folder", "repo"):
        if not isinstance(text := tree.get(key), str):
            continue
        path = Path(str(paths.resolve(text))).expanduser()
        if key == "repo" or not path.exists():
            total += memory()
        else:
            files = [path] if path.is_file() else list(path.glob("*.safetensors"))
            total += sum(file.stat().st_size for file in files if file.is_file())
    return total


_LIBRARY = (
    ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What libraries raise for numbers that go together with nothing."""


class _Limit(TorchDispatchMode):
    """Counts what is made."""

    def __init__(self, room: Room, name: str, counted: bool) -> None:
        super().__init__()
        self.room, self.name, self.counted = room, name, counted
        self.tensors = self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.calls += 1
        if self.calls > CALLS * TENSORS:
            self._refuse()
        if func.overloadpacket in _FILLING and args[0].is_meta:
            return args[0]  # nothing is there to be filled, and finding that out takes most of the time
        if size := _SIZES.get(func.overloadpacket):
            self.tensors += 1
            if self.tensors > TENSORS:
                self._refuse()
            if self.counted and torch.device(kwargs.get("device") or "cpu").type != "meta":
                self.room.take(self.name, FLOAT * size(args))
        return func(*args, **kwargs)

    def _refuse(self) -> NoReturn:
        raise ModelError(
            f"{self.name} of more than {TENSORS:,} tensors",
            "some thousand, as the largest published models have",
            "look at layers, depth and the like in the recipe and in config.json",
        )


def _span(args: Any) -> int:
    start, end = (0, args[0]) if len(args) == 1 else args[:2]
    return math.ceil(abs(end - start) / abs(args[2] if len(args) > 2 else 1))


_aten = torch.ops.aten
_FILLING = frozenset(
    {_aten.normal_, _aten.uniform_, _aten.fill_, _aten.zero_, _aten.erfinv_, _aten.mul_, _aten.add_, _aten.clamp_}
)
"""What draws the numbers of a parameter in place."""
_SIZES: dict[Any, Callable[[Any], int]] = {
    **dict.fromkeys(
        (_aten.empty, _aten.zeros, _aten.ones, _aten.full, _aten.rand, _aten.randn), lambda args: math.prod(args[0])
    ),
    _aten.arange: _span,
    _aten.eye: lambda args: math.prod(one for one in args if isinstance(one, int)),
    _aten.linspace: lambda args: args[2],
}
"""Factories that make a tensor of a given size, and the numbers in it."""
