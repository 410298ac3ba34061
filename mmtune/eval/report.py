"""The results of an evaluation, as plain data and as tables.

Intervals treat questions as independent. Questions about one clip are not quite, so true intervals are a little wider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmtune.eval import instructions
from mmtune.eval.controls import EXPERTS, EXPERTS_BLIND
from mmtune.eval.metrics import OVERALL, STATIC, TEMPORAL, Mark, constant_answers, exact_match, rows_of, table
from mmtune.eval.tasks.base import Outcome, Task

NOTE = "constant: the best single answer of each type, chosen on these very questions"


def summary(marks: Mapping[str, Sequence[Mark]]) -> dict[str, Any]:
    """Scores of each control, and of the best constant answer of each type."""
    first = next(iter(marks.values()))
    best = constant_answers((mark.type, mark.truth) for mark in first)
    constant = [replace(m, right=exact_match(best[m.type], [m.truth]), answer=best[m.type]) for m in first]
    return {
        "scores": {control: _rows(one) for control, one in marks.items()},
        "constant": {"chosen_on": "the answers of these questions", "answers": best, "scores": _rows(constant)},
    }


def measures(task: Task, marks: Sequence[Mark], outcomes: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Every measure of the task in each row that has a question."""
    rows = {row: [outcomes[index] for index in indexes] for row, indexes in rows_of(marks).items()}
    return {row: task.measured(held) for row, held in rows.items() if held}


def _rows(marks: Sequence[Mark]) -> dict[str, dict[str, Any]]:
    return {row: one.as_dict() for row, one in table(marks).items()}


def text(result: Mapping[str, Any]) -> str:
    """The printed report."""
    scores, constant = result["scores"], result["constant"]["scores"]
    questions = next(iter(scores.values()))[OVERALL]["total"]
    lines = [f"{result['task']['name']}: {result['records']} records, {questions} questions, {result['seconds']} s"]
    if result["skipped"]:
        lines.append("skipped: " + ", ".join(f"{reason} {count}" for reason, count in result["skipped"].items()))
    if result["unusual"]:
        notes = sorted(result["unusual"].items(), key=lambda one: -one[1])
        lines.append("media that were unusual, and used: " + ", ".join(f"{note} {count}" for note, count in notes))
    if result.get("experts"):
        lines.append("experts: " + ", ".join(f"{what} {count}" for what, count in result["experts"].items()))
    temporal = bool(next(iter(scores.values()))[TEMPORAL]["total"])
    for control, rows in scores.items():
        if control not in ("plain", EXPERTS, EXPERTS_BLIND) and len(scores) > 1:
            continue
        chosen = {row: one for row, one in rows.items() if one["total"] and (temporal or row != STATIC)}
        lines += ["", *_table(control, chosen, result["measures"][control], constant, result["right"])]
    if len(scores) > 1 and result["right"]:
        shown = (OVERALL, STATIC, TEMPORAL) if temporal else (OVERALL,)
        lines += ["", f"{'control':<20}" + "".join(f"{row:>25}" for row in shown)]
        for control, rows in {**scores, "constant": constant}.items():
            lines.append(f"{control:<20}" + "".join(f"{_short(rows[row]):>25}" for row in shown))
    if "instructions" in result:
        lines += instructions.text(result["instructions"]["measures"])
    return "\n".join(lines)


def _table(
    control: str,
    rows: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Mapping[str, float]],
    constant: Mapping[str, Mapping[str, Any]],
    right: str | None,
) -> list[str]:
    """Lines of one control: the share of right answers with its interval, where there is one, then other measures."""
    others = [name for name in measured[OVERALL] if name != right]
    wide = max(20, *(len(row) + 2 for row in rows))
    head = f"{control:<{wide}}{'questions':>10}"
    if right:
        head += f"{right.replace('_', ' '):>13}   {'95 % interval':<16}{'constant':>9}"
    lines = [head + "".join(f"{name.replace('_', ' '):>12}" for name in others)]
    for row, one in rows.items():
        line = f"{row:<{wide}}{one['total']:>10}"
        if right:
            line += f"{one['accuracy']:>13.3f}   {one['low']:.3f} .. {one['high']:.3f}  "
            line += f"{constant[row]['accuracy']:>9.3f}"
        lines.append(line + "".join(f"{measured[row][name]:>12.4g}" for name in others))
    return [*lines, NOTE] if right else lines


def _short(one: Mapping[str, Any]) -> str:
    return f"{one['accuracy']:.3f} ({one['low']:.3f}..{one['high']:.3f})" if one["total"] else "none"
