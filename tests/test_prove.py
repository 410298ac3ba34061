"""The promises of `tools/prove`, in its short form; and that a proof with its guard taken away is broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROVE = [sys.executable, str(ROOT / "tools/prove.py")]


def names() -> list[str]:
    return [name for name in sorted(p.stem for p in (ROOT / "tools/proofs").glob("[a-z]*.py")) if name != "mutants"]


@pytest.fixture(scope="module")
def lines() -> dict[str, str]:
    """What each proof says; one process for all, because most of a short proof is importing."""
    done = subprocess.run([*PROVE, "--short"], capture_output=True, text=True, timeout=900, check=False)
    found, last = {}, ""
    for line in done.stdout.splitlines():
        if not line.startswith(" "):
            last = line.split()[0]
        found[last] = found.get(last, "") + line + "\n"
    return {**found, "exit": str(done.returncode), "errors": done.stderr[-2000:]}


@pytest.mark.slow
@pytest.mark.parametrize("name", names())
def test_it_holds(lines: dict[str, str], name: str) -> None:
    assert name in lines, lines["errors"]
    assert lines[name].split()[1] == "holds", lines[name]


@pytest.mark.slow
def test_the_exit_code_says_so(lines: dict[str, str]) -> None:
    assert lines["exit"] == "0", lines


FIND = """
import sys
sys.path[:0] = [".", "tools"]
from proofs import mutants
for proof, guard in mutants.guards():
    text, tree, _ = mutants._source(guard.module)
    first, last = mutants._lines(tree, guard.function)
    found = "".join(text.splitlines(keepends=True)[first - 1 : last]).count(guard.old)
    if found != 1:
        print(f"{proof}: {guard.name}: {found} times in {guard.module}:{guard.function}")
"""


def test_the_text_of_every_guard_is_found_once() -> None:
    words = [sys.executable, "-c", FIND]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr[-2000:]


def test_unknown_names_are_refused() -> None:
    done = subprocess.run([*PROVE, "nonsense"], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 2 and "no proof nonsense" in done.stderr
