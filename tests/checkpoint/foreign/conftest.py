"""Pickled files are read in this process here, by the converter's own functions: a process of its own takes seconds
for importing torch, once for each file. Tests about that process ask for it, by the fixture `child`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from safetensors.torch import save_file

from mmtune.checkpoint.foreign import _files, _unpickle


@pytest.fixture
def child() -> None:
    """Asks for the child process."""


@pytest.fixture(autouse=True)
def _in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "child" in request.fixturenames:
        return
    real = _files.convert

    def convert(path: Path, inside: Sequence[str], scratch: Path | None, seconds: float | None = None) -> Path:
        if scratch is None:
            return real(path, inside, scratch, seconds)
        try:
            tensors, _ = _unpickle.flatten(_unpickle.load(str(path)), list(inside))
        except Exception:  # the child says what is wrong with it
            return real(path, inside, scratch, seconds)
        scratch.mkdir(parents=True, exist_ok=True)
        out = scratch / f"{len(list(scratch.iterdir()))}.safetensors"
        save_file(tensors, out)
        return out

    monkeypatch.setattr(_files, "convert", convert)
