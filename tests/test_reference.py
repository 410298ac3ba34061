"""The reference pages say what the source says, and a page that does not is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mmtune import registry
from mmtune.recipe import Recipe
from tools import reference

HEADINGS = {"model.branches.NAME", "streams.NAME", "groups.NAME", "schedule.stages.N", "eval.streams.NAME", "limits"}


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    pytest.importorskip("pdoc")
    return {name: make() for name, make in reference.PAGES.items()}


@pytest.mark.parametrize("name", reference.PAGES)
def test_the_page_is_current(pages: dict[str, str], name: str) -> None:
    assert reference.is_current(name, pages[name]), f"run tools/reference, which writes docs/reference/{name} anew"


def test_every_section_field_and_entry_is_there(pages: dict[str, str]) -> None:
    recipe = re.split(r"^## ", pages["recipe.md"], flags=re.MULTILINE)
    of = {text.partition("\n")[0]: text for text in recipe[1:]}
    assert set(of) >= HEADINGS
    for path, section in reference.sections(Recipe):
        for field in section.model_fields:
            assert f"| `{field}` |" in of[path or "The whole"]
    for room in registry.ROOMS:
        for name in registry.names(room):
            assert f"### {room}: {name}\n" in pages["entries.md"]


def test_the_contract_of_every_room_is_there_with_its_remarks(pages: dict[str, str]) -> None:
    page = pages["contracts.md"]
    for room in registry.ROOMS:
        contract = registry.contract(room)
        assert f"## {room}\n" in page
        assert f"### {contract.__module__}.{contract.__name__}\n" in page
    for said in (
        "- `whole: ClassVar[bool] = False`: ",
        "- `columns: Mapping[str, numpy.ndarray]`: Name to float64 [n]",
        "#### Tuner.apply\n",
        "### mmtune.optimizers.base.decay_matrices\n",
        "### mmtune.sequences.log_probs\n",
        "| `max_tokens` | integer | `24` |",
    ):
        assert said in page


def test_links_between_the_pages_lead_somewhere(pages: dict[str, str]) -> None:
    anchors = {
        name: {reference._anchor(line.lstrip("# ")) for line in text.splitlines() if line.startswith("#")}
        for name, text in pages.items()
    }
    links = [(name, *link) for name, text in pages.items() for link in re.findall(r"\]\(([\w.]*)#([\w-]+)\)", text)]
    assert len(links) > 20
    assert not [link for link in links if link[2] not in anchors[link[1] or link[0]]]


def test_what_is_called_and_raised_is_described(pages: dict[str, str]) -> None:
    for said in (
        "### mmtune.load\n",
        "def chat(",
        "#### Loaded.ask\n",
        "**ConfigError:**",
        "### mmtune.errors.DataError\n",
    ):
        assert said in pages["python.md"]


def test_a_page_that_lags_behind_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reference, "FOLDER", tmp_path)
    monkeypatch.setattr(reference, "PAGES", {"one.md": lambda: "new\n", "two.md": lambda: "same\n"})
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0
    (tmp_path / "one.md").write_text("old\n")
    assert reference.main(["--check"]) == 1
    said = capsys.readouterr().err
    assert "one.md" in said and "two.md" not in said
    assert (tmp_path / "one.md").read_text() == "old\n", "a check writes nothing"


def test_modules_as_html(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pdoc")
    assert {"mmtune", "mmtune.training", "mmtune.recipe"} <= set(reference.modules())
    monkeypatch.setattr(reference, "modules", lambda: ["mmtune", "mmtune.errors"])
    assert reference.main(["--html", str(tmp_path)]) == 0
    page = (tmp_path / "mmtune.html").read_text(encoding="utf-8")
    assert "whatever reading the run raises" in page, "verbs that are resolved on first use are there"
    assert "cannot be used as written" in (tmp_path / "mmtune" / "errors.html").read_text(encoding="utf-8")
