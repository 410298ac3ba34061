"""Every guard is needed: with it taken away, the proof that lists it is broken.

A guard is taken away in a process of its own, by compiling its function with another text and putting the new code in
the place of the old; whoever holds the function holds the mutant. First the short form of the proof runs, and where
that still holds, the full one, up to the first thing that is broken. A guard whose text is not there any more counts as
living. Before that each proof runs with everything in its place, and has to hold.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import shutil
import sys
import types
from pathlib import Path
from typing import Any

from . import _fork
from ._base import FirstBreak, Guard, Verdict

SHORT, LONG = 240.0, 600.0
"""Seconds that a mutant may live in the short and in the full form; one that makes a proof hang is as good as dead."""


def guards() -> list[tuple[str, Guard]]:
    """Name of the proof, and a guard that it has to miss."""
    found = []
    for file in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        if file.stem != "mutants":
            module = importlib.import_module(f"{__package__}.{file.stem}")
            found += [(file.stem, guard) for guard in getattr(module, "GUARDS", ())]
    return found


@functools.cache
def _source(name: str) -> tuple[str, ast.Module, str]:
    """Text of a module as it is when it is first asked for, its tree, and its file."""
    file = importlib.import_module(name).__file__
    text = Path(file).read_text(encoding="utf-8")
    return text, ast.parse(text), file


def take_away(guard: Guard) -> None:
    """Put the mutant into this process. Raises ValueError when the guard is not where it is said to be."""
    module = importlib.import_module(guard.module)
    held: Any = module
    for part in guard.function.split("."):
        held = inspect.getattr_static(held, part)
    held = held.fget if isinstance(held, property) else getattr(held, "__func__", held)
    function = inspect.unwrap(held)
    text, tree, file = _source(guard.module)
    first, last = _lines(tree, guard.function)
    lines = text.splitlines(keepends=True)
    body = "".join(lines[first - 1 : last])
    if body.count(guard.old) != 1:
        raise ValueError(f"{guard.module}:{guard.function} has {body.count(guard.old)} times {guard.old!r}")
    lines[first - 1 : last] = [body.replace(guard.old, guard.new)]
    function.__code__ = _find(compile("".join(lines), file, "exec"), guard.function)


def _lines(tree: ast.Module, name: str) -> tuple[int, int]:
    """First and last line of a function."""
    at: Any = tree
    for part in name.split("."):
        at = next(node for node in at.body if getattr(node, "name", None) == part)
    return at.lineno, at.end_lineno


def _find(code: types.CodeType, name: str) -> types.CodeType:
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            if inner.co_qualname == name:
                return inner
            if name.startswith(inner.co_qualname + "."):
                return _find(inner, name)
    raise ValueError(f"no function {name}")


def prove(short: bool) -> Verdict:
    verdict = Verdict("mutants", "guards killed: each taken away alone, and its proof broken")
    from . import _stage

    _stage.recipe_file()
    listed = guards()
    for _, guard in listed:
        _source(guard.module)
    if short:
        listed = listed[:: len(listed) // 3]
    for proof in sorted({proof for proof, _ in listed}):
        # in the same way as a mutant; a proof that is broken anyhow would kill them all
        why = _run(proof, None, True, SHORT)
        verdict.need(why is None, f"{proof} is broken with every guard in its place: {why}")
        if why:
            listed = [pair for pair in listed if pair[0] != proof]
    for proof, guard in listed:
        why = _run(proof, guard, True, SHORT)
        if why is None and not short:
            why = _run(proof, guard, False, LONG)
        state = "killed" if why else "LIVES "
        print(f"    {state}  {proof}: {guard.name}: {(why or '')[:110]}", file=sys.stderr, flush=True)
        verdict.check(why is not None, f"{proof}: {guard.name} ({guard.module}:{guard.function})")
    verdict.notes = [f"{len({proof for proof, _ in listed})} proofs"]
    return verdict


_number = 0


def _run(proof: str, guard: Guard | None, short: bool, seconds: float) -> str | None:
    """What broke, or none."""
    global _number
    _number += 1

    def work() -> list[str]:
        from . import _stage

        if guard is not None:
            try:
                take_away(guard)
            except (ValueError, AttributeError, StopIteration) as error:
                return ["lives", str(error)]
        _stage.straight.cache_clear()  # the proof is to be the mutant's, its straight run as well
        folder = _stage.move(f"mutant-{_number}")
        Verdict.impatient = True
        try:
            verdict = importlib.import_module(f"{__package__}.{proof}").prove(short)
        except FirstBreak as error:
            return ["broken", str(error)]
        except Exception as error:
            return ["broken", f"{type(error).__name__}: {error}"]
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return ["holds", ""] if verdict.holds else ["broken", "; ".join(verdict.broken)]

    ended = _fork.run(work, seconds=seconds)
    if ended.value is None:
        return f"no end after {seconds:.0f} s" if ended.code == -9 else f"ended with {ended.code}: {ended.said[-200:]}"
    state, why = ended.value
    if state == "lives":
        print(f"    {why}", file=sys.stderr, flush=True)
    return " ".join(why.split()) if state == "broken" else None
