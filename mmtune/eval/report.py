"""What comes of an evaluation, as plain data and as tables.

Intervals count questions as independent. Questions about one clip are not quite, so true ones are a little wider.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mmtune.eval.controls import EXPERTS, EXPERTS_BLIND
from mmtune.eval.metrics import OVERALL, STATIC, TEMPORAL, Mark, constant_answers, exact_match, table

NOTE = "constant: the best single answer of each type, chosen on these very questions"


def summary(marks: Mapping[str, Sequence[Mark]]) -> dict[str, Any]:
    """Scores of each control, and of the best constant answer of each type."""
    first = next(iter(marks.values()))
    best = constant_answers((mark.kind, mark.truth) for mark in first)
    constant = [replace(m, right=exact_match(best[m.kind], [m.truth]), answer=best[m.kind]) for m in first]
    return {
        "scores": {control: _rows(one) for control, one in marks.items()},
        "constant": {"chosen_on": "the answers of these questions", "answers": best, "scores": _rows(constant)},
    }


def _rows(marks: Sequence[Mark]) -> dict[str, dict[str, Any]]:
    return {row: one.as_dict() for row, one in table(marks).items()}


def text(result: Mapping[str, Any]) -> str:
    """The report for people."""
    scores, constant = result["scores"], result["constant"]["scores"]
    questions = next(iter(scores.values()))[OVERALL]["total"]
    lines = [f"{result['task']['name']}: {result['records']} records, {questions} questions, {result['seconds']} s"]
    if result["skipped"]:
        lines.append("skipped: " + ", ".join(f"{reason} {count}" for reason, count in result["skipped"].items()))
    if result.get("experts"):
        lines.append("experts: " + ", ".join(f"{what} {count}" for what, count in result["experts"].items()))
    for control, rows in scores.items():
        if control not in ("plain", EXPERTS, EXPERTS_BLIND) and len(scores) > 1:
            continue
        lines += ["", f"{control:<20}{'questions':>10}{'accuracy':>10}   {'95 % interval':<16}{'constant':>9}"]
        for row, one in rows.items():
            if one["total"]:
                lines.append(
                    f"{row:<20}{one['total']:>10}{one['accuracy']:>10.3f}   {one['low']:.3f} .. {one['high']:.3f}  "
                    f"{constant[row]['accuracy']:>9.3f}"
                )
        lines.append(NOTE)
    if len(scores) > 1:
        lines += ["", f"{'control':<20}" + "".join(f"{row:>25}" for row in (OVERALL, STATIC, TEMPORAL))]
        for control, rows in {**scores, "constant": constant}.items():
            lines.append(f"{control:<20}" + "".join(f"{_short(rows[row]):>25}" for row in (OVERALL, STATIC, TEMPORAL)))
    return "\n".join(lines)


def _short(one: Mapping[str, Any]) -> str:
    return f"{one['accuracy']:.3f} ({one['low']:.3f}..{one['high']:.3f})" if one["total"] else "none"
