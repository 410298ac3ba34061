"""Python processes that this program starts: what they see of this one, and how they end.

A child is isolated: it looks for modules where this process does but for the current folder, gets a few variables of
the environment, and takes mmtune from where it is here. Between it and this process stands a guard
(`mmtune.guard`), which ends it and all that it started when `Child.end` is called and when this process goes away,
however that ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mmtune import safe_path

KEPT = (
    "PATH", "HOME", "USER", "USERPROFILE", "LANG", "LC_*", "TZ", "TMPDIR", "TEMP", "TMP", "SYSTEMROOT", "VIRTUAL_ENV",
    "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "OMP_*", "MKL_NUM_THREADS", "HF_HOME",
    "XDG_CACHE_HOME", "MMTUNE_CACHE", "MMTUNE_DEBUG",
)  # fmt: skip
"""Variables of the environment that a child gets; one that ends in a star stands for all that begin so."""
_PATHS = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""Lists of folders; an entry that is no absolute path stands for something in the current folder."""
PATIENCE = 5.0
"""Seconds for a guard to end what it guards, before it is ended itself."""
_PACKAGE = Path(__file__).resolve().parent

_BOOT = """
import sys, json, importlib.util as util
told = json.loads(sys.argv[1])
sys.path[:] = told["path"]
spec = util.spec_from_file_location("mmtune", told["init"], submodule_search_locations=[told["package"]])
sys.modules["mmtune"] = mmtune = util.module_from_spec(spec)
spec.loader.exec_module(mmtune)
from mmtune import guard
guard.run(told["module"], told["watch"])
"""


def environment(whole: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that a child gets. PYTHONPATH is none of it: see `safe_path.handed_on`."""

    def kept(name: str) -> bool:
        return any(name.startswith(one[:-1]) if one.endswith("*") else name == one for one in KEPT)

    found = {name: value for name, value in whole.items() if kept(name)}
    for name in _PATHS:
        if name in found:
            found[name] = os.pathsep.join(one for one in found[name].split(os.pathsep) if os.path.isabs(one))
    return found | {"PYTHONSAFEPATH": "1"}


class Child:
    """A Python process that runs `main()` of one module of mmtune.

    Args:
        module: full name of the module.
        folders: more places where it looks for modules, after all others.
        env: variables beside those of `environment`.
        stderr: as for `subprocess.Popen`; nothing of it is read when not given.

    Attributes:
        process: its guard, with pipes to the standard input and from the standard output of the child. It ends with
            the code of the child.
    """

    def __init__(
        self,
        module: str,
        folders: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        stderr: int | None = subprocess.DEVNULL,
    ) -> None:
        self._ending = threading.Lock()
        theirs, self._watch = os.pipe() if hasattr(os, "fork") else (-1, -1)
        told = {
            "path": [*safe_path.handed_on(), *folders],
            "package": str(_PACKAGE),
            "init": str(_PACKAGE / "__init__.py"),
            "module": module,
            "watch": theirs,
        }
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", "-c", _BOOT, json.dumps(told)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment(os.environ) | dict(env or {}),
                start_new_session=True,
                pass_fds=(theirs,) if theirs >= 0 else (),
            )
        except BaseException:
            self._unwatch()
            raise
        finally:
            if theirs >= 0:
                os.close(theirs)

    def end(self) -> None:
        """End the child and all that it started. May be called from several threads, and again."""
        with self._ending:
            if self.process.poll() is not None:
                self._unwatch()
                return
            self._tell()
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(PATIENCE)

    def _tell(self) -> None:
        """Tell the guard that it is time to leave."""
        if self._watch < 0:
            self.process.kill()
            return
        with contextlib.suppress(OSError):
            os.write(self._watch, b".")  # said aloud: a fork of this process may hold the pipe open
        self._unwatch()
        with contextlib.suppress(OSError):
            os.kill(self.process.pid, signal.SIGCONT)  # if what it guards has stopped it

    def _unwatch(self) -> None:
        if self._watch >= 0:
            os.close(self._watch)
        self._watch = -1


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Let every Python that anything starts meanwhile, as `multiprocessing` does, leave the current folder out."""
    before = {name: os.environ.get(name) for name in ("PYTHONSAFEPATH", "PYTHONPATH")}
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(word for word in (before["PYTHONPATH"] or "").split(os.pathsep) if word)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
