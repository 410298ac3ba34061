"""How much memory and time pieces of code take: measured in one child process that cannot take more than `room`."""

import json
import os
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import json, resource, sys, time
from pathlib import Path

import torch, av, numpy
from PIL import Image
from mmtune.errors import MediaError
from mmtune.media import Limits, Sampling, load
from mmtune.media import image, video, audio, points
from mmtune.types import MediaRef

def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(what))) << 10

path, room, seconds, codes = json.loads(sys.argv[1])
DATA = Path(path).read_bytes()
for code in codes:
    before, limit = memory("VmRSS:"), memory("VmSize:") + (room << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2])) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + seconds, resource.RLIM_INFINITY))
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    begin, said = time.process_time(), "done"
    try:
        exec(code)
    except MemoryError:
        said = "MemoryError"
    except Exception as error:
        said = f"{getattr(error, 'reason', '')} {type(error).__name__}: {error}".strip()
    print(json.dumps([(memory("VmHWM:") - before) >> 20, time.process_time() - begin, said]), flush=True)
"""


def load(kind: str) -> str:
    """Code that loads the bytes DATA."""
    return f"load(MediaRef({kind!r}, DATA, 'item'), Sampling(frames=2))"


def peaks(folder: Path, data: bytes, *codes: str, room: int = 3000, seconds: int = 20) -> list[tuple]:
    """(MB beyond what the process had, seconds, what came of it) of each piece of code, in which DATA are the bytes.

    What is ended for its time is the last one: (0, seconds, "killed").
    """
    path = folder / f"peak{len(list(folder.iterdir()))}"
    path.write_bytes(data)
    child = subprocess.run(
        [sys.executable, "-c", _SCRIPT, json.dumps([str(path), room, seconds, codes])],
        env={**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert child.returncode <= 0, child.stderr
    told = [tuple(json.loads(line)) for line in child.stdout.splitlines() if line.startswith("[")]
    return [*told, (0, float(seconds), "killed")][: len(codes)]
