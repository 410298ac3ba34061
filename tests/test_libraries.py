"""The findings on which the table of libraries rests; where one changes, its row is to be thought over."""

from __future__ import annotations

import re

import pytest

from tools import docs, libraries

FINDINGS = {
    "tar": (
        "ours: one of 100 headers damaged: gives 99 members, 1 damaged stretches named",
        "tarfile: one of 100 headers damaged: gives 40 members",
        "webdataset: one of 100 headers damaged: gives 40 samples",
    ),
    "cache": ("a file that changed at its source: gives b'first'", "20 shards of 1 MiB take 20 MiB"),
    "yaml": (
        "'lr: 1e-4': safe_load gives {'lr': '1e-4'}; ours gives {'lr': 0.0001}",
        "'a: 1\\na: 2': safe_load gives {'a': 2}; ours raises ConfigError",
        "43 million values by aliases: safe_load gives 8 keys; ours raises ConfigError",
    ),
    "json": (
        "a key twice: json.loads gives {'a': 2}; ours raises DataError",
        "nested 100000 deep: json.loads raises RecursionError",
    ),
}
"""Comparison to what it has to say, word for word."""


@pytest.mark.parametrize("name", FINDINGS)
def test_what_the_table_says_is_found(name: str) -> None:
    said = "\n".join(libraries.tar(many_members=100) if name == "tar" else libraries.COMPARISONS[name]())
    assert not [line for line in FINDINGS[name] if line not in said], said


def test_the_page_names_every_comparison() -> None:
    page = (docs.ROOT / "docs" / "libraries.md").read_text(encoding="utf-8")
    command = re.search(r"tools/libraries (.*)", page)
    assert command and command[1].split() == list(libraries.COMPARISONS)
