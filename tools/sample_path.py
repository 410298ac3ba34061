"""The path of one sample from a shard to its loss, as the functions of mmtune in the order of their first call.

    python -P tools/sample_path.py < /dev/null   # with PYTHONPATH at the root of a checkout

Prints a JSON list of [file, function]. It imports mmtune from PYTHONPATH, so that it can look at an older checkout too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import sys
import tempfile
import threading
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

CHANGES = (
    *("streams.caption=null", "groups.connector.streams=[instruct]", "schedule.steps=1", "schedule.warmup=0"),
    *("run.workers=0", "run.feature_cache=null", "run.batch_tokens=320"),
)
"""To the recipe `pocket`: one row, prepared in this process, and no feature read from a file."""
FIRST, LAST = "Loader.steps", "loss"
"""Methods: the loader begins to take samples; the objective returns."""


class Recorder:
    """Notes each function of a package at its first call between `FIRST` and the return of `LAST`."""

    def __init__(self, package: Path) -> None:
        self.package, self.on, self.seen = package, False, dict[CodeType, None]()
        threading.setprofile(self)
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, _value: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(f"{self.package}/"):
            self.on = self.on or code.co_qualname == FIRST
            if self.on and not code.co_name.startswith("<"):
                self.seen.setdefault(code)
        elif event == "return" and self.on and self._is_last(code):
            threading.setprofile(None)
            sys.setprofile(None)

    def _is_last(self, code: CodeType) -> bool:
        return code.co_name == LAST and code.co_filename.startswith(f"{self.package}/objectives/")

    def steps(self) -> list[tuple[str, str]]:
        root = self.package.parent
        return [(str(Path(code.co_filename).relative_to(root)), code.co_qualname) for code in self.seen]


def main() -> None:
    from mmtune import config
    from mmtune.data.world.make import make_shards
    from mmtune.recipe import Recipe

    package = Path(str(config.__file__)).parent
    room = "training" if (package / "training").is_dir() else "train"
    loop = importlib.import_module(f"mmtune.{room}.loop")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        make_shards(Path(folder), clips=8, seed=0, level="full")
        recipe = config.load(Recipe, "pocket", [*CHANGES, f"streams.instruct.data=['{folder}/*.tar']"])
        recorder = Recorder(package)
        loop.train(recipe, dry_run=True)
    print(json.dumps(recorder.steps()))


if __name__ == "__main__":
    main()
