"""`mmtune list`: rooms, names, and the options of an entry."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from mmtune import registry
from mmtune.cli import app
from mmtune.commands import names


def listed(*words: str) -> str:
    done = CliRunner().invoke(app, ["list", *words])
    assert done.exit_code == 0, done.output or done.exception
    return done.stdout


def test_every_room_and_shelf_with_its_names() -> None:
    said = listed()
    for room in registry.ROOMS:
        assert f"{room}: {', '.join(registry.names(room))}" in said
    assert listed("recipes").split() == list(registry.shipped("recipes"))


def test_options_of_an_entry_with_types_defaults_and_remarks() -> None:
    said = listed("connectors", "pool")
    assert "adaptive average pooling" in said.splitlines()[0]
    assert "  time: integer >= 1 (default 16)\n      Bins over frames.\n" in said
    assert "  short: fewer | repeat (default fewer)\n" in said
    assert "  hidden: integer or null (default null)\n" in said
    assert "  mean: list of 3 of number or null (default null)" in listed("encoders", "clip")


@pytest.mark.parametrize("room", registry.ROOMS)
def test_every_option_of_every_entry_has_a_remark(room: str) -> None:
    for name in registry.names(room):
        chosen = registry.find(room, name).Config
        said = list(names.fields(chosen))
        for option, field in chosen.model_fields.items():
            place = next(number for number, line in enumerate(said) if line.startswith(f"  {option}: "))
            if option != "name":
                assert field.description and said[place + 1].startswith("      "), (room, name, option)
            assert ": any (" not in said[place], (room, name, option)


def test_methods_of_a_package_are_among_the_options_of_its_tuner() -> None:
    said = listed("tuners", "hf_peft")
    assert "one of adalora, " in said and "vera" in said
    assert "every option of the method's peft config" in said


def test_sections_of_a_recipe() -> None:
    assert listed("sections").split()[:3] == ["model", "streams", "groups"]
    assert "  seed: integer >= 0, < 2147483648 (default 0)\n" in listed("sections", "run")
    assert "  match: list of text (needed)\n" in listed("sections", "groups")
    assert "  prompt: text (needed)" in listed("sections", "streams")


def test_a_prompt_or_a_card_is_printed_as_it_is() -> None:
    said = listed("prompts", "plain")
    assert said.endswith(registry.shipped("prompts")["plain"].read_text()) and said.startswith("# ")
