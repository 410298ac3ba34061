"""What weights are held in, decided here for every part and every command; and that they are numbers at all.

- What trains is float32, whatever it was loaded in: smaller steps would be rounded away, and float16 overflows.
- What is frozen has the precision of the run: float32 with `fp32`, bfloat16 with `bf16`; but what a run itself keeps
  (connectors, fusion, what tuners added) stays as it is.
- Encoders are opened in float32. A language model is opened in its `dtype`, and `mmtune import` writes there the type
  that the checkpoint was published in: `opened_as`.
- What is exported has one type: see `mmtune.checkpoint.foreign.base.ForeignConfig`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from mmtune.errors import CheckpointError
from mmtune.types import Tunable

Precision = Literal["fp32", "bf16"]

TYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
FROZEN: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Precision of a run to the type of its frozen weights."""
ROUNDING: dict[torch.dtype, float] = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
"""How far a few layers may be off when they are computed in another order, or held in this type, as a part of the
largest output."""


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def settle(model: Tunable, precision: Precision) -> dict[str, tuple[str, int]]:
    """Give every parameter of a model that is about to train its type, see above; in place.

    Returns:
        What was changed among frozen weights, as "bfloat16 to float32" to (the first name, number of values).
    """
    own = {name for names in model.tuned.values() for name in names}
    changed: dict[str, tuple[str, int]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.is_floating_point():
            continue
        wanted = torch.float32 if parameter.requires_grad else FROZEN[precision]
        kept = name in own or name.startswith("fusion.") or ".connector." in name
        if parameter.dtype == wanted or (kept and not parameter.requires_grad and precision == "bf16"):
            continue
        if not parameter.requires_grad:
            what = f"{name_of(parameter.dtype)} to {name_of(wanted)}"
            first, count = changed.get(what, (name, 0))
            changed[what] = (first, count + parameter.numel())
        parameter.data = parameter.data.to(wanted)
    return changed


def opened_as(stored: str, device: torch.device | str | None = None) -> str:
    """The type that a checkpoint of type `stored` is best opened in on a device, by default the best one here.

    float16 becomes bfloat16, which has the same size and cannot overflow, but on devices that do not compute in it.
    """
    if stored != "float16":
        return stored if stored in TYPES else "float32"
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = torch.device(device).type
    if kind == "mps" or (kind == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False)):
        return "float16"
    return "bfloat16"


def commonest(tensors: Iterable[Tensor]) -> str | None:
    """Name of the floating type that holds most values; None where there is none."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        if tensor.is_floating_point():
            counts[name_of(tensor.dtype)] += tensor.numel()
    return counts.most_common(1)[0][0] if counts else None


def stored_in(files: Iterable[Path]) -> str | None:
    """The same of safetensors files, by their headers alone. Raises what the package raises."""
    from safetensors import safe_open

    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    counts: Counter[str] = Counter()
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                piece = opened.get_slice(name)
                if (kind := names.get(piece.get_dtype())) is not None:
                    shape = piece.get_shape()
                    counts[kind] += torch.Size(shape).numel()
    return counts.most_common(1)[0][0] if counts else None


def require_finite(tensors: Mapping[str, Tensor], origin: str, held: torch.dtype | None = None) -> None:
    """Raise CheckpointError, with names, for NaN and infinity among weights that were read from `origin`.

    Where that is a folder of safetensors, the file that holds the first of them is named.

    Args:
        held: type in which they have to be finite; none is each one's own.
    """
    wrong = []
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.is_meta and tensor.numel():
            count = tensor.numel() - int(tensor.to(held or tensor.dtype).isfinite().sum())
            if count:
                wrong.append(f"{name} ({count:,} of {tensor.numel():,} values)")
    if wrong:
        first = wrong[0].split(" (")[0]
        origin = next((str(file) for file in _files(origin) if _holds(file, first)), origin)
        more = f", and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise CheckpointError(
            f"{origin}: NaN or infinity in {', '.join(wrong[:8])}{more}",
            "finite numbers",
            "the file was damaged, or saved by a training that had failed; get it again",
        )


def _files(origin: str) -> list[Path]:
    return sorted(Path(origin).glob("*.safetensors")) if Path(origin).is_dir() else []


def _holds(file: Path, name: str) -> bool:
    """Whether a file has a tensor of this name, whatever stands before it there."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        return any(one == name or one.endswith(f".{name}") or name.endswith(f".{one}") for one in opened.keys())  # noqa: SIM118
