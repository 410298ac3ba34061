"""`tools/fidelity` in its short form: every case is the same model or refused by name, and it says so in counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = [sys.executable, str(ROOT / "tools/fidelity.py")]


@pytest.mark.slow
def test_the_short_form(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = subprocess.run(
        [*TOOL, "--short", "--write", str(page)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "9 exports of 4 layouts: 3 equal when loaded back, 6 refused by name, 0 otherwise" in done.stdout
    assert "| lora + dora | = |" in page.read_text() and "| lily | refused |" in page.read_text()


def test_a_fault_is_counted_and_ends_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("fidelity_tool", ROOT / "tools/fidelity.py")
    tool = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fidelity_tool", tool)
    spec.loader.exec_module(tool)
    table = tool.Table()
    table.put("eva", "mean", tool.FAULT, "why")
    monkeypatch.setattr(tool, "of_kind", lambda kind, short: table)
    monkeypatch.setattr(sys, "argv", ["fidelity", "eva"])
    assert tool.main() == 1
    assert "1 otherwise" in capsys.readouterr().out


def test_every_setting_of_an_encoder_is_in_the_table_or_a_size() -> None:
    """A new setting has to be put into the table, or among the sizes that the weights tell."""
    from mmtune import registry

    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import fidelity
    finally:
        sys.path.pop(0)
    for name, rows in fidelity.SETTINGS.items():
        known = {row.strip() for row in rows} | fidelity.SIZES.get(name, set()) | fidelity.ELSEWHERE
        fields = set(registry.find("encoders", name).Config.model_fields)
        assert not fields - known, f"{name}: {sorted(fields - known)} in no row of tools/fidelity"
