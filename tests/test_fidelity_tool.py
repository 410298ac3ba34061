"""`tools/fidelity` in its short form: every case is the same model or refused by name, and it says so in counts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fidelity_tool", ROOT / "tools/fidelity.py")
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fidelity_tool", found)
    spec.loader.exec_module(found)
    return found


def test_the_short_form(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["fidelity", "--short", "--write", str(page)])
    failed, said = tool.main(), capsys.readouterr().out
    assert failed == 0, said
    assert "11 exports of 4 layouts: 4 equal when loaded back, 7 refused by name, 0 otherwise" in said
    table = tool.Table.read(page.read_text())
    assert table.cells["llava_hf"]["layers"] == "=" and table.cells["pllava"]["layers"] == "refused"
    assert table.cells["llava_hf"]["lora + dora"] == "=" and table.cells["llava_hf"]["lily"] == "refused"


def test_columns_that_are_not_tried_again_stay(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    for kind, cell in (("eva", tool.FAULT), ("blip2", tool.SAME), ("eva", tool.REFUSED)):
        table = tool.Table()
        table.put(kind, "mean", cell)
        monkeypatch.setattr(tool, "of_kind", lambda kind, short, table=table: table)
        monkeypatch.setattr(sys, "argv", ["fidelity", kind, "--write", str(page)])
        tool.main()
    assert tool.Table.read(page.read_text()).cells == {"blip2": {"mean": "="}, "eva": {"mean": "refused"}}


def test_a_fault_is_counted_and_ends_with_1(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    table = tool.Table()
    table.put("eva", "mean", tool.FAULT, "why")
    monkeypatch.setattr(tool, "of_kind", lambda kind, short: table)
    monkeypatch.setattr(sys, "argv", ["fidelity", "eva"])
    assert tool.main() == 1
    assert "1 otherwise" in capsys.readouterr().out


def test_every_setting_of_an_encoder_is_in_the_table_or_a_size(tool: ModuleType) -> None:
    """A new setting has to be put into the table, or among the sizes that the weights tell."""
    from mmtune import registry

    for name, rows in tool.SETTINGS.items():
        known = {row.strip() for row in rows} | tool.SIZES.get(name, set()) | tool.ELSEWHERE
        fields = set(registry.find("encoders", name).Config.model_fields)
        assert not fields - known, f"{name}: {sorted(fields - known)} in no row of tools/fidelity"
