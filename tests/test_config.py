"""YAML to configs and back: a safe subset, `base:`, overrides, and every mistake in one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mmtune import config, registry
from mmtune.config import Config, entry
from mmtune.errors import ConfigError


class Wheel(Config):
    spokes: int = 3
    """Number of spokes."""
    size: float


class Cart(Config):
    wheels: dict[str, Wheel] = {}
    """Name to wheel."""
    spare: Wheel | None = None
    more: list[Wheel] = []
    connector: entry("connectors") | None = None  # type: ignore[valid-type]
    name: str = "cart"


# ------------------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.0e-4", 1e-4),
        (".5", 0.5),
        ("-3", -3),
        ("1_000", 1000),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("yes", "yes"),
        ("on", "on"),
        ("no", "no"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("0x1f", "0x1f"),
        ("007", "007"),
        ("1.2.3", "1.2.3"),
        ("e5", "e5"),
        ("<<", "<<"),
        ("'1'", "1"),
        (".inf", ".inf"),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    found = config.parse(text, "t")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "line 3.*'a' a second time"),
        ("a: {b: 1, b: 2}", "'b' a second time"),
        ("a: !!python/object/apply:os.system [ls]", "the tag"),
        ("a: !!python/name:os.system", "the tag"),
        ("? [1, 2]\n: 3", "not plain text"),
        ("a: [1", "line 1"),
        ("a: *nothing", "undefined alias"),
        ("a: 1\n---\nb: 2", "another document"),
        ("[" * 60 + "]" * 60, "deep"),
        ("a: &a [1]\nb: [" + "*a, " * 60 + "]", "more than 50 aliases"),
        ("a: &a [*a]", "recursive"),
        ("x: " + "y" * 1_000_001, "characters"),
    ],
)
def test_yaml_that_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config.parse(text, "t.yaml")


def test_aliases_that_swell_are_refused() -> None:
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 6)]
    with pytest.raises(ConfigError, match="too much"):
        config.parse("\n".join(lines), "t")
    assert config.parse("a: &x {b: 1}\nc: *x", "t") == {"a": {"b": 1}, "c": {"b": 1}}


TREES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(TREES)
def test_what_is_dumped_is_read_back(tree: Any) -> None:
    try:
        found = config.parse(config.dump({"x": tree}), "t")["x"]
    except ConfigError as error:  # YAML cannot hold some control characters
        assert "special characters" in str(error) or "reader" in str(error) or "character" in str(error)
        return
    assert found == tree
    assert repr(found) == repr(tree), "types and order too"


# -------------------------------------------------------------------------------------------------- files, overrides


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_base_is_one_level_and_merges(tmp_path: Path) -> None:
    write(tmp_path / "below.yaml", "a: {b: 1, c: [1, 2]}\nllm: {name: hf, folder: x}\nd: 4\n")
    path = write(tmp_path / "top.yaml", "base: below.yaml\na: {c: [3]}\nllm: {name: other}\ne: 5\n")
    found = config.read(path)
    assert found == {"a": {"b": 1, "c": [3]}, "llm": {"name": "other"}, "d": 4, "e": 5}
    same = write(tmp_path / "same.yaml", "base: below.yaml\nllm: {name: hf, seed: 1}\n")
    assert config.read(same)["llm"] == {"name": "hf", "folder": "x", "seed": 1}
    less = write(tmp_path / "less.yaml", "base: below.yaml\nllm: null\nd: null\n")
    assert config.read(less) == {"a": {"b": 1, "c": [1, 2]}, "d": None}, "null takes a mapping out"
    assert config.read(less, ["a.c=null", "a=null"]) == {"d": None}
    deep = write(tmp_path / "deep.yaml", "base: top.yaml\n")
    with pytest.raises(ConfigError, match=r"deep\.yaml.*top\.yaml"):
        config.read(deep)
    with pytest.raises(ConfigError, match=r"\['a', 'b'\]"):
        config.read(write(tmp_path / "bad.yaml", "base: [a, b]\n"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("a.b=7", {"a": {"b": 7}, "l": [{"x": 1}, 2]}),
        ("a.n.m=1e-3", {"a": {"b": 1, "n": {"m": 0.001}}, "l": [{"x": 1}, 2]}),
        ("l.0.x=[1, z]", {"a": {"b": 1}, "l": [{"x": [1, "z"]}, 2]}),
        ("a={c: true}", {"a": {"c": True}, "l": [{"x": 1}, 2]}),
        ("a.b=", {"a": {"b": None}, "l": [{"x": 1}, 2]}),
        ("a.b=x=y", {"a": {"b": "x=y"}, "l": [{"x": 1}, 2]}),
    ],
)
def test_overrides(override: str, expected: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "t.yaml", "a: {b: 1}\nl: [{x: 1}, 2]\n")
    assert config.read(path, [override]) == expected


@pytest.mark.parametrize(
    "override",
    ["a.b", "=1", "a..b=1", "a.b.c=1", "l.9=1", "l.x=1", "l.\u00b2=1", f"l.{'1' * 5000}=1", "a={", ""],
)
def test_overrides_that_are_refused(override: str, tmp_path: Path) -> None:
    path = write(tmp_path / "t.yaml", "a: {b: 1}\nl: [{x: 1}, 2]\n")
    with pytest.raises(ConfigError):
        config.read(path, [override])


def test_later_overrides_win_and_the_tree_is_left_alone() -> None:
    tree = {"a": {"b": 1}}
    assert config.override(config.override(tree, "a.b=2"), "a.b=3") == {"a": {"b": 3}}
    assert tree == {"a": {"b": 1}}


def test_files_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="'pockett'"):
        config.read("pockett")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigError, match=r"the path that is there: \./mine"):
        config.read("mine")
    with pytest.raises(ConfigError, match=r"no file .*gone\.yaml"):
        config.read(tmp_path / "gone.yaml")
    with pytest.raises(ConfigError, match=r"list\.yaml.*\[1\]"):
        config.read(write(tmp_path / "list.yaml", "[1]"))
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        config.read(tmp_path / "latin.yaml")


def test_the_folder_of_a_run_stands_for_its_recipe(tmp_path: Path) -> None:
    write(tmp_path / "recipe.yaml", "a: 1")
    assert config.read(tmp_path) == {"a": 1}


def test_shelves_of_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "mmtune"
    for kind in ("recipes", "prompts", "cards"):
        (package / "configs" / kind).mkdir(parents=True)
        (package / "configs" / kind / "one.yaml").write_text("a: 1")
    (tmp_path / "site" / "configs" / "recipes").mkdir(parents=True)  # somebody else's folder of that name
    monkeypatch.setattr(registry, "__file__", str(package / "registry.py"))
    assert registry.shipped("recipes") == {"one": package / "configs/recipes/one.yaml"}
    assert config.read("one", builtin="cards") == {"a": 1}


# ------------------------------------------------------------------------------------------------------- validation


def test_all_mistakes_at_once() -> None:
    tree = {
        "wheels": {"left": {"size": "big", "spoke": 4}, "right": {}},
        "spare": {"size": 1, "colour": "red"},
        "more": [{"size": 1}, {"size": 2, "spikes": 1}],
        "connector": {"name": "linear", "widht": 3},
        "nmae": 1,
    }
    with pytest.raises(ConfigError) as caught:
        config.validate(Cart, tree, "cart.yaml")
    lines = caught.value.seen.splitlines()
    assert lines[0] == "7 mistakes in cart.yaml:"
    text = "\n".join(lines)
    assert "wheels.left.size: input should be a valid number" in text
    assert "seen 'big'" in text
    assert "wheels.left.spoke: unknown key; the known keys are spokes, size" in text
    assert "wheels.right.size: missing" in text
    assert "spare.colour: unknown key; the known keys are " in text
    assert "more.1.spikes: unknown key; the known keys are spokes, size" in text
    assert "connector.widht: unknown key; the known keys are " in text
    assert "name" in next(line for line in lines if "connector.widht" in line)
    assert "nmae: unknown key; the known keys are name, " in text


def test_entries() -> None:
    cart = config.validate(Cart, {"connector": {"name": "linear"}})
    assert type(cart.connector).__module__ == "mmtune.connectors.linear"
    assert cart.model_dump()["connector"]["name"] == "linear"
    assert config.validate(Cart, config.parse(config.dump(cart), "t")) == cart
    assert config.validate(Cart, {"connector": cart.connector}).connector == cart.connector
    for wrong, message in [
        ({"name": "linaer"}, "connectors has no 'linaer'; expected: one of linear"),
        ({}, "name is missing; one of "),
        ("linear", r"\{name: linear\} is needed, one of .*linear, .*package\.module:Class"),
        (3, "a mapping with a name is needed"),
        ({"name": 3}, "name is missing"),
        (Wheel(size=1), "name is missing"),
    ]:
        with pytest.raises(ConfigError, match=f"connector.*{message}"):
            config.validate(Cart, {"connector": wrong})


def test_configs_are_frozen_and_finite() -> None:
    wheel = Wheel(size=1.0)
    with pytest.raises(ValidationError):
        wheel.size = 2.0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        Wheel(size=float("nan"))


def test_problems_across_fields_are_listed_with_their_path() -> None:
    class Pair(Config):
        low: int
        high: int

        def model_post_init(self, context: Any) -> None:
            problems = [config.problem("low", "is above high", self.low)] if self.low > self.high else []
            config.raise_problems("Pair", [*problems, *([config.problem("high", "is odd")] if self.high % 2 else [])])

    class Both(Config):
        one: Pair

    with pytest.raises(ConfigError) as caught:
        config.validate(Both, {"one": {"low": 5, "high": 3}})
    assert caught.value.seen.splitlines()[1:] == ["  one.low: is above high", "  one.high: is odd"]
    config.raise_problems("nothing", [])


def test_schema_has_help_and_entries() -> None:
    schema = config.schema(Cart)
    assert schema["$defs"]["Wheel"]["properties"]["spokes"]["description"] == "Number of spokes."
    assert schema["$defs"]["Wheel"]["additionalProperties"] is False
    names = [one["properties"]["name"]["const"] for one in _any_of(schema["properties"]["connector"])]
    assert "linear" in names


def _any_of(node: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for option in node.get("anyOf", []):
        found += [option] if "properties" in option else _any_of(option)
    return found
