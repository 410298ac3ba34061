"""The commands of README and docs, run as they are written.

    tools/docs                     # every command, word for word, in a folder made for it; minutes
    tools/docs README.md --show    # those of one page, with what they print
    tools/docs --list              # the commands, and which of them are not run, and why

A page is Markdown. A line of its blocks of code, fenced or indented, is a command if it begins with a program, or with
`$ ` and its output below. Every command is run, or stands in `NOT_RUN` with the reason. Lines that say how a command
is spelled (`RUN`, `[...]`) are held against its options. The files that the pages name are made by `docs_inputs`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md", "docs/*.md")
PROGRAMS = ("mmtune", "python", "pip", "hf", "tar", "torchrun", "accelerate", "img2dataset", "video2dataset", "git")
SHOWN = ("yaml", "python", "json", "text")
"""Languages of fenced blocks that hold no commands."""
NOT_RUN = (
    (r"(pip install|hf download|git clone|img2dataset|video2dataset) ", "fetches from a network"),
    (r"mmtune .*(s3|https|hf)://", "fetches from a network"),
    (r"(torchrun|accelerate) ", "for eight devices; tests/training/test_launch.py starts two processes"),
    (
        r"tools/(demo|curve|claims|prove|bench|docs|fidelity|libraries|measure)\b",
        "takes minutes; a test has a small form of it",
    ),
    (r"tools/test\b", "runs what runs this"),
    (r"PYTHONPATH=\. mmtune ", "tests/test_contributing.py runs it, with the examples that stand above it"),
    (r"mmtune data convert train\.parquet", "needs the extra `parquet`; tests/data has it where that is installed"),
    (r"mmtune (chat|train) .*\b(sign\.jpg|talk\.mp4)\b.*--expert ocr", "needs the extra `ocr`; tests/experts"),
)
"""Pattern of commands that are not run, and why."""


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    line: int
    """Of the page, from 1."""
    text: str
    """As written; lines that a backslash joins are one."""
    output: tuple[str, ...] = ()
    """What the page shows below it, where it begins with `$ `."""

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def words(self) -> list[str]:
        """As a shell splits it, without the remark behind it."""
        return shlex.split(self.text, comments=True)

    @property
    def is_usage(self) -> bool:
        """Whether it says how a command is spelled: words that stand for others."""
        return any(re.search(r"^\[|\.\.\.|\||(^|=)[A-Z]{2,}(/|$|\b)", word) for word in self.words[1:])

    @property
    def reason(self) -> str | None:
        """Why it is not run; none where it is."""
        return next((why for pattern, why in NOT_RUN if re.match(pattern, self.text)), None)


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: str
    line: int
    language: str
    """Of a fence; empty for none and for indented blocks."""
    lines: tuple[str, ...]

    @property
    def commands(self) -> list[Command]:
        """The commands in it."""
        return list(_commands(self)) if self.language not in SHOWN else []


def pages() -> list[Path]:
    """The pages there are."""
    return [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page, fenced and indented, in their order."""
    name = page.relative_to(ROOT).as_posix()
    lines = page.read_text(encoding="utf-8").splitlines()
    at = 0
    while at < len(lines):
        if fence := re.match(r"(```+|~~~+)\s*(\w*)", lines[at]):
            end = next((n for n in range(at + 1, len(lines)) if lines[n].startswith(fence[1])), len(lines))
            yield Block(name, at + 2, fence[2], tuple(lines[at + 1 : end]))
            at = end + 1
        elif lines[at].startswith("    ") and (at == 0 or not lines[at - 1].strip()) and not _in_list(lines, at):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield Block(name, at + 1, "", tuple(line[4:] for line in lines[at:end]))
            at = end
        else:
            at += 1


def examples(page: Path) -> dict[str, str]:
    """Files of Python that a page has whole: name to source. The first line of such a block names its file."""
    found = {}
    for block in blocks(page):
        if block.language == "python" and (name := re.fullmatch(r"# ([a-z]\w*/\w+\.py)", block.lines[0])):
            found[name[1]] = "\n".join(block.lines) + "\n"
    return found


def commands(page: Path) -> list[Command]:
    """All commands of a page, in their order."""
    return [command for block in blocks(page) for command in block.commands]


def _in_list(lines: list[str], at: int) -> bool:
    """Whether an indented line goes on with an item of a list."""
    above = next((line for line in reversed(lines[:at]) if line.strip()), "")
    return bool(re.match(r"\s*([*-]|\d+\.)\s", above))


def _commands(block: Block) -> Iterator[Command]:
    at, lines = 0, block.lines
    prompted = any(line.startswith("$ ") for line in lines)
    while at < len(lines):
        begin, text = at, lines[at]
        at += 1
        if (prompted and not text.startswith("$ ")) or not is_command(text.removeprefix("$ ")):
            continue
        text = text.removeprefix("$ ")
        while text.endswith("\\") and at < len(lines):
            text, at = text[:-1].rstrip() + " " + lines[at].strip(), at + 1
        below = lines[at : next((n for n in range(at, len(lines)) if lines[n].startswith("$ ")), len(lines))]
        yield Command(block.page, block.line + begin, text.strip(), tuple(below) if prompted else ())


def is_command(line: str) -> bool:
    """Whether a line of a block is one that a shell is given."""
    first = line.partition(" ")[0]
    return first in PROGRAMS or first.startswith("tools/") or bool(re.match(r"[A-Z_]+=\S+ \w", line))


def run(page: Path, folder: Path, show: bool) -> int:
    """Every command of a page by a shell, in a folder with the files that it names; returns how many failed."""
    failed = 0
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for command in commands(page):
        if command.is_usage or command.reason:
            continue
        done = subprocess.run(
            ["bash", "-c", command.text], cwd=folder, env={**os.environ, "PATH": path}, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        print(f"{command.where}: {'ok' if not done.returncode else f'FAILED with {done.returncode}'}: {command.text}")
        if show or done.returncode:
            print(done.stdout)
        failed += bool(done.returncode)
    return failed


def main(words: Sequence[str] | None = None) -> int:
    ask = argparse.ArgumentParser(
        prog="tools/docs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ask.add_argument("pages", nargs="*", type=Path, help="README.md, docs/joint.md, ...; all when none is given")
    ask.add_argument("--list", action="store_true", help="the commands, and what becomes of each")
    ask.add_argument("--show", action="store_true", help="also what they print")
    given = ask.parse_intermixed_args(words)
    chosen = [ROOT / page for page in given.pages] or pages()
    if given.list:
        for command in (one for page in chosen for one in commands(page)):
            what = command.reason or ("says how it is spelled" if command.is_usage else "run")
            print(f"{command.where}: {command.text}\n    {what}")
        return 0
    sys.path.insert(0, str(ROOT))
    from tools import docs_inputs

    failed = 0
    for page in chosen:
        with tempfile.TemporaryDirectory() as folder:
            docs_inputs.make(Path(folder))
            failed += run(page, Path(folder), given.show)
    print(f"{failed} failed" if failed else "all of them ran")
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
