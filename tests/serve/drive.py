"""The `mmtune` command with a scripted engine: `python -m tests.serve.drive '{"answer": "..."}' chat ...`."""

from __future__ import annotations

import json
import sys

from mmtune import paths
from mmtune.errors import CheckpointError
from mmtune.serve import run_info
from tests.serve.fake import FakeEngine, FakeRunInfo


def main() -> None:
    script = json.loads(sys.argv.pop(1))
    said = {name: script[name] for name in ("answer", "pause", "echo") if name in script}
    fake = FakeEngine(**said, run=paths.PACKAGE / "pocket" / "chat")
    fault = CheckpointError("no weights") if script.get("fault") else None
    info = FakeRunInfo(engine=fake, wait=script.get("wait", 0.0), fault=fault)
    run_info.packaged_run = lambda: info.run
    run_info.RunInfo.read = classmethod(lambda _, run, device="auto": info)
    from mmtune.cli import main as command

    command()


if __name__ == "__main__":
    main()
