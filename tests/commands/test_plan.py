"""`mmtune plan` prints what docs/scaling.md shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmtune.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scaling.md"
SHOWN = re.findall(r"^\$ mmtune (plan .*)\n((?:.+\n)+?)```", PAGE.read_text(encoding="utf-8"), re.MULTILINE)


def test_all_sizes_are_shown():
    words = " ".join(command for command, _ in SHOWN)
    assert len(SHOWN) == 6 and all(size in words for size in ("7b", "13b", "70b"))


@pytest.mark.parametrize(("command", "said"), SHOWN, ids=lambda text: text[:60])
def test_the_page_shows_what_is_printed(command, said):
    done = CliRunner().invoke(app, shlex.split(command), catch_exceptions=False)
    assert done.exit_code == 0 and done.output == said


def test_idle_devices_are_noted():
    words = ["plan", "llava_1_5_7b_lora", "run.batch_tokens=2048", "--devices", "8"]
    said = CliRunner().invoke(app, words, catch_exceptions=False).output
    assert "note: 1 rows on 8 devices leave some of them idle" in said


def test_a_small_model_is_told_in_small_units():
    said = CliRunner().invoke(app, ["plan", "pocket_joint", "--devices", "2"], catch_exceptions=False).output
    assert "sum MB" in said and "compute ms" in said and "note: 989 TFLOPS are for bf16" in said
    row = next(line.split() for line in said.splitlines() if line.startswith("replicate  kept"))
    assert all(float(number) > 0 for number in (*row[2:7], *row[8:]))
