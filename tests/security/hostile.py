"""Attacks: what is inside a folder, a file or a process that somebody else made does no harm here.

Each test of this folder carries out an attack and looks for its harm: a canary that code of the attacker leaves, a file
that should not have changed, a measured peak of memory or time. `docs/security.md` lists what is promised and the test
that shows it. Here is what the attacks share: modules that leave a canary when they are imported, and processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

PACKAGES = ("torch", "yaml", "numpy", "pydantic", "typer", "click", "rich", "transformers", "PIL", "av", "regex")
"""Beside Python's own modules; names that this program or its libraries import."""


class Canary:
    """A file that code of the attacker writes.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def code(self, name: str = "") -> str:
        """Source that leaves the canary and does nothing else."""
        return f"with open({str(self.path)!r}, 'a') as file: file.write({name + chr(10)!r})\n"

    def module(self, folder: Path, name: str) -> None:
        """A module that leaves the canary."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(self.code(name))

    def traps(self, folder: Path) -> None:
        """A module in `folder` for every name that might be imported.

        But for what Python itself imports before anything of mmtune runs, when it is started with `-m` and without
        `-P`: no program can do anything about that.
        """
        folder.mkdir(parents=True, exist_ok=True)
        loaded = subprocess.run(
            [sys.executable, "-I", "-c", "import runpy, importlib.util, sys; print(*sys.modules)"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        for name in {*sys.stdlib_module_names, *PACKAGES} - {*loaded.stdout.split()}:
            self.module(folder, name)

    @property
    def sung(self) -> list[str]:
        """What ran."""
        return self.path.read_text().split() if self.path.exists() else []


def mmtune(*words: str, cwd: Path, how: tuple[str, ...] = ("-m", "mmtune"), **env: str) -> subprocess.CompletedProcess:
    """The command, started in a folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *how, *words], cwd=cwd, env=clean | env, text=True, capture_output=True, timeout=100
    )


def gone(number: int) -> bool:
    """Whether a process has ended."""
    try:
        return psutil.Process(number).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def until(true: Callable[[], bool], seconds: float = 20) -> bool:
    """Wait for something that is bound to come; says whether it came."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
