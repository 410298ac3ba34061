"""Scores of answers, and confidence intervals of accuracies.

An accuracy says little without its number of questions and its interval, so every accuracy comes with both.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""


def normalise(text: str) -> str:
    """Lower case, single spaces, no final punctuation: what exact match compares."""
    return " ".join(text.lower().split()).rstrip(".!?,;: ")


def exact_match(answer: str, accepted: Iterable[str]) -> bool:
    """Whether the normalised answer is one of the normalised accepted ones."""
    return normalise(answer) in {normalise(text) for text in accepted}


def rouge_l(answer: str, references: Iterable[str]) -> float:
    """ROUGE-L of the reference that fits best: F of the longest common subsequence of words, recall as precision.

    Lin 2004, "ROUGE: a package for automatic evaluation of summaries", section 3.1, with beta = 1.  Words are those of
    `normalise`, without punctuation. 1 for the same words in the same order, 0 for none in common.
    """
    return max((_common_share(_words(answer), _words(one)) for one in references), default=0.0)


def token_f1(answer: str, references: Iterable[str]) -> float:
    """F1 of the words that an answer shares with the reference that fits best, each counted as often as in both.

    Rajpurkar et al. 2016, "SQuAD", section 6.1, with words as in `rouge_l`. 1 for the same words in any order.
    """
    return max((_shared(_words(answer), _words(one)) for one in references), default=0.0)


def _shared(a: list[str], b: list[str]) -> float:
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b)) if a and b else float(a == b)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", normalise(text))


def _common_share(a: list[str], b: list[str]) -> float:
    """2 LCS / (|a| + |b|)"""
    row = [0] * (len(b) + 1)
    for word in a:
        before = row
        row = [0]
        for index, other in enumerate(b):
            row.append(before[index] + 1 if word == other else max(row[-1], before[index + 1]))
    return 2 * row[-1] / (len(a) + len(b)) if a or b else 0.0


def wilson(right: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Interval of a proportion. Wilson 1927, equation 2: stays inside 0..1, and is honest for small totals.

    Args:
        right: number of successes.
        total: number of trials; 0 gives (0, 1).
        z: normal quantile; the default gives 95 %.
    """
    if not 0 <= right <= total:
        raise ValueError(f"{right} right of {total}")
    if total == 0:
        return 0.0, 1.0
    share, square = right / total, z * z / total
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / total + square / (4 * total))
    # at the ends the formula gives exactly 0 or 1, except for rounding
    low = 0.0 if right == 0 else max(0.0, centre - half)
    high = 1.0 if right == total else min(1.0, centre + half)
    return low, high


@dataclass(frozen=True, slots=True)
class Score:
    """A share of right answers with its number of questions and its interval."""

    right: int
    total: int
    low: float
    high: float

    @property
    def accuracy(self) -> float | None:
        """Share of right answers in 0..1; none without a question."""
        return self.right / self.total if self.total else None

    def as_dict(self) -> dict[str, float | int | None]:
        return {"accuracy": self.accuracy, **asdict(self)}


def score(marks: Sequence[bool]) -> Score:
    right = sum(map(bool, marks))
    return Score(right, len(marks), *wilson(right, len(marks)))


@dataclass(frozen=True, slots=True)
class Mark:
    """One question with its outcome."""

    type: str
    temporal: bool
    right: bool
    answer: str
    truth: str
    medium: str = ""
    """Kind of media of the question."""


OVERALL, STATIC, TEMPORAL = "overall", "static", "temporal"


def rows_of(marks: Sequence[Mark]) -> dict[str, list[int]]:
    """Overall, static, temporal, each medium if there are several, then every type by name -> indices of its marks."""
    rows = {
        OVERALL: list(range(len(marks))),
        STATIC: [index for index, mark in enumerate(marks) if not mark.temporal],
        TEMPORAL: [index for index, mark in enumerate(marks) if mark.temporal],
    }
    media = sorted({mark.medium for mark in marks if mark.medium})
    for medium in media if len(media) > 1 else ():
        rows[f"about {medium}"] = [index for index, mark in enumerate(marks) if mark.medium == medium]
    by_type: dict[str, list[int]] = defaultdict(list)
    for index, mark in enumerate(marks):
        by_type[mark.type].append(index)
    if set(by_type) == {""}:  # no question has a type
        return rows
    return rows | {f"type {kind or '(none)'}": by_type[kind] for kind in sorted(by_type)}


def table(marks: Sequence[Mark]) -> dict[str, Score]:
    """The share of right answers in each row of `rows_of`."""
    return {row: score([marks[index].right for index in indexes]) for row, indexes in rows_of(marks).items()}


def constant_answers(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The most frequent answer of each kind (ties: first in the alphabet).  (kind, truth) pairs -> {kind: answer}"""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for kind, truth in pairs:
        counts[kind][normalise(truth)] += 1
    return {kind: min(counter, key=lambda text, c=counter: (-c[text], text)) for kind, counter in counts.items()}
