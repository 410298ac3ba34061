from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmtune.eval import metrics


def test_exact_match_after_normalisation():
    assert metrics.exact_match(" A  red Circle. ", ["a red circle"])
    assert metrics.exact_match("yes!", ["no", "Yes"])
    assert not metrics.exact_match("a red circle it is", ["a red circle"])
    assert not metrics.exact_match("", ["yes"])
    assert metrics.normalise("3.5.") == "3.5", "a dot inside stays"


def test_wilson_against_worked_numbers():
    # by hand: p=0.5, n=10, z=1.96 -> (0.2366, 0.7634); p=1, n=10 -> lower 1/(1+z^2/n)=0.7225
    low, high = metrics.wilson(5, 10)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    low, high = metrics.wilson(10, 10)
    assert low == pytest.approx(0.7225, abs=1e-4) and high == 1.0
    assert metrics.wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share(pair):
    right, total = pair
    low, high = metrics.wilson(right, total)
    assert 0 <= low <= right / total <= high <= 1
    mirror = metrics.wilson(total - right, total)
    assert mirror == pytest.approx((1 - high, 1 - low))


def test_wilson_refuses_nonsense():
    with pytest.raises(ValueError):
        metrics.wilson(3, 2)


def test_table_rows():
    marks = [
        metrics.Mark("colour", False, True, "red", "red"),
        metrics.Mark("colour", False, False, "blue", "red"),
        metrics.Mark("order", True, True, "circle", "circle"),
    ]
    rows = metrics.table(marks)
    assert list(rows) == ["overall", "static", "temporal", "type colour", "type order"]
    assert [(r.right, r.total) for r in rows.values()] == [(2, 3), (1, 2), (1, 1), (1, 2), (1, 1)]
    assert metrics.table([])["overall"].accuracy is None


def test_constant_answers():
    pairs = [("colour", "Red"), ("colour", "red."), ("colour", "blue"), ("does", "no"), ("does", "yes")]
    assert metrics.constant_answers(pairs) == {"colour": "red", "does": "no"}


def test_rouge_l_against_worked_numbers():
    # Lin 2004, section 3.1: "police killed the gunman" with "police kill the gunman" and "the gunman kill police"
    assert metrics.rouge_l("police kill the gunman", ["police killed the gunman"]) == pytest.approx(3 / 4)
    assert metrics.rouge_l("the gunman kill police", ["police killed the gunman"]) == pytest.approx(2 / 4)
    assert metrics.rouge_l("A red circle.", ["nothing", "a red, circle"]) == 1.0
    assert metrics.rouge_l("a b", ["a x b y"]) == pytest.approx(2 * 2 / 6)
    assert metrics.rouge_l("", ["a"]) == metrics.rouge_l("a", []) == metrics.rouge_l("", [""]) == 0.0
