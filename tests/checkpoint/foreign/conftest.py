"""Pickled files are read in this process here, see `inside`. Tests about the other process ask for it by `child`."""

from __future__ import annotations

import pytest

from mmtune.checkpoint.foreign import _files
from tests.checkpoint.foreign.inside import converter


@pytest.fixture
def child() -> None:
    """Asks for the child process."""


@pytest.fixture(autouse=True)
def _in_this_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "child" not in request.fixturenames:
        monkeypatch.setattr(_files, "convert", converter())
