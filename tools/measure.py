"""What a checkout is like, in numbers.

    tools/measure                      # this one
    tools/measure --root FOLDER        # another, an older one for instance: git worktree add FOLDER COMMIT
    tools/measure --setup take_step    # statements of other functions of training, by their qualified names

Prints lines by room, the longest file and function, the files that a sample passes from a shard to its loss, the
statements of the set-up of a run, stretches of six lines or more that stand twice, and old names, which are none.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from tools import old_names  # noqa: E402  (the root may be another checkout; the tools are these)

STRETCH = 6
"""Fewest lines of code that count as repeated."""
ROOMS = ("mmtune", "tests", "tools", "configs", "data", "docs")


def sources(root: Path, *rooms: str) -> list[Path]:
    return sorted(path for room in rooms or ROOMS[:3] for path in (root / room).rglob("*.py"))


def lines_by_room(root: Path) -> list[tuple[str, int, int]]:
    """(room, files, lines) of Python: the rooms of mmtune, its single files as one, then tests and tools."""
    found: dict[str, list[int]] = defaultdict(list)
    for path in sources(root):
        parts = path.relative_to(root).parts
        room = parts[0] if parts[0] != "mmtune" else "mmtune/" + (parts[1] if len(parts) > 2 else "*.py")
        found[room].append(len(path.read_text(encoding="utf-8").splitlines()))
    return [(room, len(lines), sum(lines)) for room, lines in sorted(found.items())]


def functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Each function of a file by its qualified name."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
        for child in ast.iter_child_nodes(node):
            name = prefix
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{child.name}."
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield name.removesuffix("."), child
            yield from walk(child, name)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "")


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def statements(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Statements of a function, those inside of others included, without its docstring."""
    inner = sum(isinstance(child, ast.stmt) for child in ast.walk(node)) - 1
    return inner - (ast.get_docstring(node) is not None)


def code_lines(path: Path) -> list[tuple[int, str]]:
    """(number, text without indentation) of what is no blank line, comment, import or docstring."""
    text = path.read_text(encoding="utf-8")
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        alone = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.Import | ast.ImportFrom) or alone:
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(n, line) for n, line in lines if n not in left_out and line and not line.startswith("#")]


def repeated(root: Path) -> list[str]:
    """Stretches of `STRETCH` lines of code or more that mmtune has twice, as `file:line file:line lines`."""
    files = {path: code_lines(path) for path in sources(root, "mmtune")}
    places: dict[tuple[str, ...], list[tuple[Path, int]]] = defaultdict(list)
    for path, lines in files.items():
        for at in range(len(lines) - STRETCH + 1):
            places[tuple(line for _, line in lines[at : at + STRETCH])].append((path, at))
    pairs = {(one, two) for found in places.values() for i, one in enumerate(found) for two in found[i + 1 :]}
    out = []
    for (path, at), (other, there) in sorted(pairs):
        if ((path, at - 1), (other, there - 1)) in pairs:
            continue  # inside a stretch that began before
        more = 0
        while ((path, at + more + 1), (other, there + more + 1)) in pairs:
            more += 1
        one, two = (f"{file.relative_to(root)}:{files[file][n][0]}" for file, n in ((path, at), (other, there)))
        out.append(f"{one} {two} {STRETCH + more}")
    return out


def sample_path(root: Path) -> list[tuple[str, str]]:
    """[file, function] in the order of first calls, from a process of its own: the checkout may be another one."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-P", str(HERE / "sample_path.py")]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return [(file, name) for file, name in json.loads(done.stdout)]


def passes(path: list[tuple[str, str]], public: bool = False) -> tuple[int, int]:
    """Files that are passed, and how often one is come back to that was left; of public functions and files alone."""

    def shown(name: str) -> bool:
        return name == "__init__" or not name.startswith("_") or not public

    files = [file for file, name in path if all(map(shown, [*name.split("."), Path(file).stem]))]
    visits = [file for file, _ in groupby(files)]
    return len(set(visits)), len(visits) - len(set(visits))


def report(root: Path, setup: str, trace: bool) -> Iterator[str]:
    rooms = lines_by_room(root)
    for room, count, lines in rooms:
        yield f"{room:<22} {count:>4} files {lines:>6} lines"
    for top in ROOMS[:3]:
        total = [row for row in rooms if row[0].split("/")[0] == top]
        yield f"{top + ', all':<22} {sum(r[1] for r in total):>4} files {sum(r[2] for r in total):>6} lines"
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in sources(root, "mmtune")}
    for path, lines in Counter(lengths).most_common(3):
        yield f"longest files          {path.relative_to(root)}: {lines} lines"
    known = [(path, name, node) for path in lengths for name, node in functions(path)]
    for path, name, node in sorted(known, key=lambda one: -length(one[2]))[:3]:
        yield f"longest functions      {name} in {path.relative_to(root)}: {length(node)} lines"
    if trace:
        path_of = sample_path(root)
        for what, public in (("all", False), ("public", True)):
            count, returns = passes(path_of, public)
            yield f"a sample passes        {count} files with {returns} returns, by {what} functions"
    training = [one for one in known if one[0].relative_to(root).parts[1].startswith("train")]
    found = [one for one in training if one[1] in setup.split(",")]
    for path, name, node in found:
        yield f"set-up of a run        {name} in {path.relative_to(root)}: {statements(node)} statements"
    if not found:
        yield f"set-up of a run        no {setup}"
    twice = repeated(root)
    yield f"repeated stretches     {len(twice)} of {STRETCH} lines or more"
    yield from (f"    {line}" for line in twice)
    names = old_names.left(root, sources(root))
    yield f"old names              {len(names)}"
    yield from (f"    {line}" for line in names[:20])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=HERE.parent, help="the checkout")
    parser.add_argument("--setup", default="build,Trainer.__init__,_Run.__init__", help="names of functions")
    parser.add_argument("--no-trace", action="store_true", help="leave out the path of a sample, which takes seconds")
    chosen = parser.parse_args()
    for line in report(chosen.root.resolve(), chosen.setup, not chosen.no_trace):
        print(line, flush=True)


if __name__ == "__main__":
    main()
