"""YAML to frozen pydantic models and back.

Unknown keys are refused with the known ones shown, and all mistakes of a file are reported in one error. The YAML read
here is a small, safe subset: scalars, lists and mappings; no tags, no merge keys, no duplicate keys, few aliases; and
`1e-4` is a number, while `on`, `yes`, `1:30` and dates are plain text, which YAML 1.1 would turn into something else.

Where things are looked up: in a checkout `configs/recipes`, `configs/prompts` and `data/cards` beside the package; in
an installed wheel the same three folders inside the package, under `mmtune/configs`.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError, core_schema

from mmtune import disk, paths, registry, renamed
from mmtune.errors import ConfigError, MmtuneError, ModelError, UsageError

MAX_BYTES = 1_000_000
"""Largest YAML file read, bytes."""
MAX_NODES = 50_000
"""Most scalars, lists and mappings in a file, aliases counted as often as they are used."""
MAX_DEPTH = 50
"""Deepest nesting."""
MAX_ALIASES = 50
"""Most uses of `*alias`."""

Model = TypeVar("Model", bound=BaseModel)

Words = Annotated[tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)]
"""A list of texts; one alone may be written without brackets."""


class Config(BaseModel):
    """Base of every config: frozen, unknown keys refused, the remark under a field is its help text."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @model_validator(mode="after")
    def _machine(self) -> Config:
        """Whole numbers are those of a machine: libraries in C take no others."""
        if wrong := [name for name, value in self.__dict__.items() if _large(value)]:
            raise PydanticCustomError("number", "{msg}", {"msg": f"{', '.join(wrong)}: a number of more than 64 bits"})
        return self

    @classmethod
    def values_of(cls, field: str) -> Sequence[str]:
        """What a field of free text takes, where that is known only when it is asked for; empty for all others."""
        return ()


def _large(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_large, value))
    return isinstance(value, int) and abs(value) >> 63 > 0


# ---------------------------------------------------------------------------------------------------------- entries


class Outside(Config):
    """An entry that is a class outside mmtune and is not imported: its name, and its options as they were written."""

    model_config = ConfigDict(extra="allow")

    name: str
    """`package.module:Class`, or what an installed package calls it."""

    def options(self) -> dict[str, Any]:
        """The options as plain data, without the name."""
        return dict(self.model_extra or {})


class _Named:
    """Pydantic marker: a mapping with a `name` is validated by the Config of that entry of the room."""

    def __init__(self, room: str, short: bool) -> None:
        self.room, self.short = room, short

    def config(self, value: Any) -> type[Config]:
        """The Config class for a mapping; raises PydanticCustomError, for pydantic to collect."""
        if not isinstance(value, Mapping):
            shown = f"{{name: {value}}}" if isinstance(value, str) else "a mapping with a name"
            raise PydanticCustomError("entry", "{msg}", {"msg": f"{shown} is needed, one of {self._known()}"})
        if not isinstance(value.get("name"), str):
            raise PydanticCustomError("entry", "{msg}", {"msg": f"name is missing; one of {self._known()}"})
        try:
            code = registry.source(self.room, value["name"])
            if code is not None and (self.room in registry.APART or not registry.is_allowed(code)):
                return Outside
            return registry.find(self.room, value["name"]).Config
        except MmtuneError as error:
            raise PydanticCustomError("entry", "{msg}", {"msg": "; ".join(str(error).splitlines())}) from error

    def validate(self, value: Any) -> Config:
        if self.short and isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Outside):
            value = value.model_dump()  # it may have been allowed since
        if isinstance(value, Config):
            cls = self.config({"name": getattr(value, "name", None)})
            if cls is Outside:
                return value  # made by its own class, which this program did not have to import
            if not isinstance(value, cls):
                raise PydanticCustomError(
                    "entry", "{msg}", {"msg": f"a {type(value).__name__} is not a {cls.__name__}"}
                )
            return value
        return self.config(value).model_validate(dict(value))

    def _known(self) -> str:
        return ", ".join([*registry.names(self.room), "package.module:Class"])

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        dump = core_schema.plain_serializer_function_ser_schema(
            lambda value, info: value.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(self.validate, serialization=dump)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        options = []
        for name in registry.names(self.room):
            if registry.source(self.room, name) is not None:
                options.append({"type": "object", "properties": {"name": {"const": name}}, "required": ["name"]})
                continue
            try:
                entry_class = registry.find(self.room, name)
            except ModelError:  # a package is absent; the other entries are still worth showing
                continue
            one = _inlined(entry_class.Config.model_json_schema())
            one.setdefault("properties", {}).setdefault("name", {})["const"] = name
            options.append(one)
        return {"anyOf": options} if options else {"type": "object"}


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without `$defs`, which count at the top of a schema only and an entry's is put inside another."""
    shared = schema.pop("$defs", {})

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            name = node.get("$ref")
            if isinstance(name, str) and name.startswith("#/$defs/"):
                rest = {key: value for key, value in node.items() if key != "$ref"}
                return {**walk(shared[name.removeprefix("#/$defs/")]), **rest}
            return {key: walk(value) for key, value in node.items()}
        return [walk(item) for item in node] if isinstance(node, list) else node

    return walk(schema)


def entry(room: str, short: bool = False) -> Any:
    """Annotation for a field that holds the config of one entry of a room, as `EncoderEntry = entry("encoders")`.

    In YAML it is a mapping `{name: clip, ...}`, where `short` also `clip`; then an instance of that entry's `Config`.
    """
    return Annotated[Config, _Named(room, short)]


# ------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """SafeLoader less its surprises."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.aliases = 0
        self.depth = 0
        self.nodes = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            self.aliases += 1
            if self.aliases > MAX_ALIASES:
                self._refuse(f"more than {MAX_ALIASES} aliases")
        elif event.tag is not None:  # what constructors make of a tag is none of plain values, or a bare KeyError
            self._refuse(f"the tag {event.tag[:80]!r}")
        self.nodes += 1
        if self.nodes > MAX_NODES:  # now, because reading a file of nothing but commas takes half a minute
            self._refuse(f"more than {MAX_NODES} values")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self._refuse(f"nested more than {MAX_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, Any] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._refuse("a key that is not plain text", key)
            if key.value in seen:
                self._refuse(f"the key {key.value!r} a second time", key)
            seen[key.value] = key
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def _refuse(self, what: str, node: Any = None) -> typing.NoReturn:
        mark = node.start_mark if node is not None else self.get_mark()
        raise yaml.MarkedYAMLError(problem=what, problem_mark=mark)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|false|False", "tTfF"),
    ("null", r"~|null|Null|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _map(loader: _Loader, node: Any) -> dict[Any, Any]:
    return loader.construct_mapping(node)


_Loader.add_constructor("tag:yaml.org,2002:map", _map)


def parse(text: str, origin: str) -> Any:
    """YAML text to plain values. Raises ConfigError that names `origin`, the line and the column."""
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{origin} has {len(text)} characters", f"at most {MAX_BYTES}")
    try:
        text.encode()  # half a surrogate pair, which the bytes of a command line may hold, is no text
        tree = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        raise ConfigError(f"{origin}{where}: {problem}", "plain YAML: text, numbers, lists, mappings") from error
    except RecursionError as error:
        raise ConfigError(f"{origin} is nested too deep", f"at most {MAX_DEPTH} levels") from error
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}", "plain YAML: text, numbers, lists, mappings") from error
    _count(tree, origin)
    return tree


def _count(tree: Any, origin: str) -> None:
    """Refuse a tree that aliases make very large, or that holds itself."""
    stack: list[tuple[Any, int]] = [(tree, 0)]
    seen = 0
    while stack:
        node, depth = stack.pop()
        seen += 1
        if seen > MAX_NODES or depth > MAX_DEPTH:
            raise ConfigError(f"{origin} holds too much", f"at most {MAX_NODES} values, {MAX_DEPTH} levels deep")
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        stack.extend((child, depth + 1) for child in children)


def dump(tree: Any) -> str:
    """Plain values, or a Config, as YAML with keys in their order and no aliases."""
    if isinstance(tree, BaseModel):
        tree = tree.model_dump(mode="json")

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    return yaml.dump(tree, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


# ------------------------------------------------------------------------------------------------------------ files


def locate(name: str | Path, builtin: registry.Builtin = "recipes", beside: Path | None = None) -> Path:
    """The file for a path or for the name of one that ships. Raises ConfigError that lists those, nearest first.

    Args:
        name: what has a slash or ends in .yaml or .yml is a path, anything else a name.
        beside: folder against which a relative path is tried first.
    """
    text = str(name)
    if isinstance(name, Path) or "/" in text or "\\" in text or text.endswith((".yaml", ".yml")):
        tried = ([beside / text] if beside else []) + [Path(text).expanduser()]
        for path in tried:
            if path.is_dir() and (path / "recipe.yaml").is_file():
                return path / "recipe.yaml"
            if path.is_file():
                return path
        raise ConfigError(f"there is no file {text}", "a YAML file", f"a name instead: mmtune list {builtin}")
    known = registry.shipped(builtin)
    if text not in known:
        hint = f"or the path that is there: ./{text}" if text and Path(text).exists() else "the path of a YAML file"
        listed = registry.suggest(text, known, builtin)
        raise ConfigError(f"no {builtin.removesuffix('s')} is called {text!r}", f"one of {listed}", hint)
    return known[text]


def read(
    path_or_name: str | Path, overrides: Sequence[str] = (), builtin: registry.Builtin = "recipes"
) -> dict[str, Any]:
    """One YAML file, its `base:` (one level) and `a.b.c=value` overrides, merged into one tree.

    `base:` is a path, tried beside the file first, or the name of one of its kind that ships. Mappings merge key by
    key, except an entry whose `name` changes: it is replaced whole, so that options of the old entry do not stick to
    the new one. Lists are replaced. Null in place of a mapping takes it out, as `streams.caption=null`. `here:NAME` in
    a file is a path in that file's folder. Raises ConfigError.
    """
    path = locate(path_or_name, builtin)
    tree = paths.from_here(_read_mapping(path), path.parent)
    base = tree.pop("base", None)
    if base is not None:
        if not isinstance(base, str):
            raise ConfigError(f"{path}: base is {base!r}", "one path or name")
        below = locate(base, builtin, beside=path.parent)
        under = paths.from_here(_read_mapping(below), below.parent)
        if "base" in under:
            raise ConfigError(f"{path} builds on {below}, which has a base itself", "one level of base")
        tree = merge(under, tree)
    for text in overrides:
        tree = override(tree, text)
    return tree


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = disk.read_text(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}", f"a UTF-8 text file of at most {MAX_BYTES:,} bytes") from error
    tree = parse(text, str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {_short(tree)}", "a mapping of keys to values")
    return renamed.fields(tree, str(path))


def merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`; neither is changed. See `read` for the rule."""
    result = dict(under)
    for key, value in over.items():
        old = result.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        renamed = both and "name" in value and "name" in old and value["name"] != old["name"]
        if isinstance(old, dict) and value is None:
            del result[key]
        else:
            result[key] = merge(old, value) if both and not renamed else value
    return result


def override(tree: dict[str, Any], text: str) -> dict[str, Any]:
    """The tree with one `a.b.c=value` applied; the value is read as YAML; items of a list are numbered from 0.

    An old name of a field means the field. Raises ConfigError when the text has no `=`, the value is not YAML, or the
    path goes through a plain value.
    """
    path, sign, value = text.partition("=")
    keys = path.strip().split(".")
    if not sign or not all(keys):
        raise ConfigError(f"the override {text!r}", "a.b.c=value", "run.seed=1")
    keys = renamed.path(keys, "the command line")
    return renamed.fields(_set(tree, keys, parse(value, f"the override {text!r}"), text), "the command line")


def _set(node: Any, keys: list[str], value: Any, text: str) -> Any:
    if not keys:
        return value
    head, rest = keys[0], keys[1:]
    if isinstance(node, list):
        if not head.isdecimal() or len(head) > 9 or int(head) >= len(node):
            raise ConfigError(f"the override {text!r}: no item {head!r}", f"a number below {len(node)}")
        return [_set(item, rest, value, text) if index == int(head) else item for index, item in enumerate(node)]
    if node is None:
        node = {}
    if not isinstance(node, dict):
        raise ConfigError(f"the override {text!r} goes through {_short(node)}", "a path of mappings")
    if not rest and value is None and isinstance(node.get(head), dict):
        return {key: held for key, held in node.items() if key != head}
    return {**node, head: _set(node.get(head), rest, value, text)}


_SPEC = re.compile(
    r"(?P<name>[a-z][a-z0-9_]*|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*)(?::(?P<options>[^=:]+=.*))?", re.DOTALL
)
_COMMA = re.compile(r",(?=\s*\w+=)")
"""Between two options; a comma inside a value stays."""


def spec(text: str, what: str, room: str, example: str) -> dict[str, Any]:
    """`NAME[:KEY=VALUE[,KEY=VALUE...]]`, an entry of a room on a command line, as plain values; not yet validated.

    Raises UsageError for text of another form.
    """
    found = _SPEC.fullmatch(text)
    if found is None:
        known = ", ".join(registry.names(room))
        raise UsageError(
            f"the {what} {text!r}",
            f"NAME[:KEY=VALUE[,KEY=VALUE...]], with a name of {known} or package.module:Class",
            example,
        )
    tree: dict[str, Any] = {"name": found["name"]}
    for option in _COMMA.split(found["options"] or ""):
        key, _, value = option.partition("=")
        if key:
            read = parse(value, f"the {what} {text!r}")
            tree[key.strip()] = value if isinstance(read, dict) else read  # "a: b" is text here
    return tree


# ------------------------------------------------------------------------------------------------------- validation


def validate(cls: type[Model], tree: Any, origin: str = "", hint: str = "change what is named above") -> Model:
    """`tree` as an instance of `cls`. Raises one ConfigError that lists every mistake, one per line:
    dotted path, what is wrong, what was seen, and for an unknown key the known ones, nearest first.
    """
    tree = renamed.fields(tree, origin or f"a {cls.__name__}")
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        lines = [_describe(cls, tree, mistake) for mistake in error.errors(include_url=False)]
    head = f"{len(lines)} {'mistake' if len(lines) == 1 else 'mistakes'} in {origin or cls.__name__}:"
    raise ConfigError("\n".join([head, *(f"  {line}" for line in lines)]), f"a valid {cls.__name__}", hint)


def load(
    cls: type[Model], path_or_name: str | Path, overrides: Sequence[str] = (), builtin: registry.Builtin = "recipes"
) -> Model:
    """`read`, then `validate`."""
    return validate(cls, read(path_or_name, overrides, builtin), str(path_or_name))


def problem(path: str, message: str, seen: Any = None) -> dict[str, Any]:
    """One line for `raise_problems`: a mistake found by a check across fields."""
    return {"type": cross_field(message), "loc": tuple(path.split(".")), "input": seen}


def cross_field(message: str) -> PydanticCustomError:
    """A mistake of one field that another field shows, for a field's validator to raise."""
    return PydanticCustomError("cross_field", "{msg}", {"msg": message})


def raise_problems(title: str, problems: list[dict[str, Any]]) -> None:
    """Raise all problems as one pydantic ValidationError, so that `validate` lists them; none raise nothing."""
    if problems:
        raise ValidationError.from_exception_data(title, problems)


def schema(cls: type[BaseModel]) -> dict[str, Any]:
    """JSON schema of a config for editors, with the remarks under the fields as descriptions."""
    return cls.model_json_schema()


def _describe(cls: type[BaseModel], tree: Any, mistake: Mapping[str, Any]) -> str:
    loc = tuple(mistake["loc"])
    path = ".".join(str(key) for key in loc) or "(the whole file)"
    if mistake["type"] == "extra_forbidden":
        known = list(_fields_at(cls, tree, loc[:-1]))
        listed = ", ".join(registry.nearest(str(loc[-1]), known)) or "(unknown)"
        return f"{path}: unknown key; the known keys are {listed}"
    if mistake["type"] == "missing":
        return f"{path}: missing"
    message = mistake["msg"].removeprefix("Value error, ")
    if mistake["type"] in ("entry", "cross_field"):
        return f"{path}: {message}"
    return f"{path}: {message[:1].lower() + message[1:]}; seen {_short(mistake['input'])}"


def _fields_at(cls: Any, tree: Any, loc: tuple[Any, ...]) -> Iterator[str]:
    """Names of the fields of the config that is at `loc` below `cls`."""
    here: Any = cls
    for key in loc:
        tree = tree[key] if isinstance(tree, (dict, list)) and _has(tree, key) else None
        if _is_config(here):
            known = here.model_fields.get(key)
            named = [item for item in known.metadata if isinstance(item, _Named)] if known else []
            here = _peel(named[0] if named else known.annotation, tree) if known else None
        else:
            here = _peel(here, tree, inside=True)
        if here is None:
            return
    if _is_config(here):
        yield from here.model_fields


def _has(tree: Any, key: Any) -> bool:
    return key in tree if isinstance(tree, dict) else isinstance(key, int) and key < len(tree)


def _peel(cls: Any, tree: Any, inside: bool = False) -> Any:
    """A config class out of an annotation: through Annotated entries and optional values, and once into a container."""
    if isinstance(cls, _Named):
        try:
            return cls.config(tree)
        except PydanticCustomError:
            return None
    origin, parts = typing.get_origin(cls), typing.get_args(cls)
    if origin is Annotated:
        named = [part for part in parts if isinstance(part, _Named)]
        return _peel(named[0] if named else parts[0], tree, inside)
    if origin in (typing.Union, types.UnionType):
        options = [part for part in parts if part is not type(None)]
        return _peel(options[0], tree, inside) if len(options) == 1 else None
    if origin in (dict, list, tuple) and inside and parts:
        return _peel(parts[1] if origin is dict else parts[0], tree)
    return cls if not inside else None


def _is_config(cls: Any) -> bool:
    return isinstance(cls, type) and issubclass(cls, BaseModel)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
