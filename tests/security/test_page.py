"""The page on security names tests that are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_tests_that_the_page_names_exist() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    named = re.findall(r"\| (tests/\S+)::(\w+) \|", page)
    rows = page.partition("| promise | test |")[2].partition("\n\n")[0].count("\n|") - 1
    assert len(named) == rows > 30
    for path, test in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        known = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert test in known, f"{path} has no {test}"
