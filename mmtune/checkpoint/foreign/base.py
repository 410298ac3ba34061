"""The contract of importers: a published layout in, and out again.

    mmtune import LAYOUT PATH... --out RUN [--option NAME=VALUE] [--set recipe.key=value]
    mmtune export RUN --layout LAYOUT --out FOLDER [--option NAME=VALUE]

An importer is plain: sources to an `Imported` (`read`), an opened run to an `Exported` (`write`). It writes nothing and
builds no model; `mmtune.checkpoint.convert` does, strictly, for all kinds alike. So both directions also work on
tensors in memory, and on the meta device, where only names and shapes are looked at.

Names on our side of a table are either full parameter names of the model (`branches.sight.connector.layers.0.weight`),
stored in `weights/`, or `PART:NAME` (`llm:model.norm.weight`), which go to the base part `PART` in `parts/` of the run.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from mmtune import jsons, paths
from mmtune.checkpoint.foreign import _files
from mmtune.checkpoint.keymap import KeyMap
from mmtune.config import Config
from mmtune.errors import CheckpointError

if TYPE_CHECKING:
    from mmtune.model import MultimodalModel
    from mmtune.recipe import Recipe
    from mmtune.types import Example, Media


class ForeignConfig(Config):
    """Named options of an importer; each upstream oddity that weights depend on is one, and never a default."""

    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """For export: the one type of everything that is written; null is that of the language model's own files where the
    layout holds them, else float32. Half of float32's bytes lose digits, which is reported."""


@dataclass(frozen=True)
class Role:
    """One PATH of the command line. They are given in the order of `Foreign.roles`, or as NAME=PATH."""

    name: str
    about: str
    """A description of the files, for `mmtune import --list`."""
    optional: bool = False


class Source:
    """What was given for one role: a file or a folder, or files and tensors in memory."""

    def __init__(self, role: str, path: Path, scratch: Path | None = None) -> None:
        """
        Args:
            scratch: folder for what pickled files are converted to; without one they are refused.
        """
        self.role = role
        self.path = path
        self.scratch = scratch
        self._memory: tuple[Mapping[str, Tensor], Mapping[str, Any]] | None = None

    @classmethod
    def memory(cls, role: str, tensors: Mapping[str, Tensor], files: Mapping[str, Any] | None = None) -> Source:
        """Tensors by published name (those on the meta device will do), and JSON files by name, as trees."""
        source = cls(role, Path(f"({role} in memory)"))
        source._memory = (tensors, files or {})
        return source

    def __str__(self) -> str:
        return str(self.path)

    @property
    def is_folder(self) -> bool:
        return self._memory is None and self.path.is_dir()

    def has(self, name: str) -> bool:
        """Whether a folder holds something of this name; what is no plain file is refused when it is read."""
        return name in self._memory[1] if self._memory else os.path.lexists(self.path / name)

    def file(self, name: str) -> Path:
        """A file of a folder. Raises CheckpointError when it is not there."""
        if self._memory is None and (self.path / name).is_file():
            return self.path / name
        if self._memory is None and self.has(name):
            raise CheckpointError(f"{self.path / name} is no plain file", "a file", "copy the folder again")
        raise CheckpointError(f"{self} has no {name}", "the whole folder as it was published", "copy it again")

    def copy(self, name: str) -> Any:
        """A file as `Part.files` takes it: its path, or in memory its content. Raises CheckpointError."""
        if self._memory and self.has(name):
            return self._memory[1][name]
        path = self.file(name)
        if (size := path.stat().st_size) > jsons.MOST:
            raise CheckpointError(f"{path}: {size:,} bytes", f"at most {jsons.MOST:,} beside weights", "copy it again")
        return path

    def json(self, name: str = "config.json") -> dict[str, Any]:
        """A JSON object, its sizes as `jsons.sizes` has them. Raises CheckpointError."""
        if self._memory:
            if name not in self._memory[1]:
                raise CheckpointError(f"{self} has no {name}", "the whole folder as it was published")
            return dict(self._memory[1][name])
        return jsons.settings(self.file(name))

    def tensors(self, inside: Sequence[str] = (), pattern: str | None = None) -> dict[str, Tensor]:
        """All tensors by published name: one file, or a folder with or without an index of shards.

        Safetensors are read as they are. Pickled files go through a converter in a child process, which takes tensors
        and plain values only.

        Args:
            inside: keys of a pickled mapping that may wrap the tensors, such as ("model", "state_dict"): the first
                present is opened and files beside it are left out. If there is none of them, all tensors are taken.
            pattern: glob for the files of a folder, instead of the usual names.

        Raises:
            CheckpointError: no file, a damaged one, a shard missing, a name in two shards, a pickle with code in it.
        """
        if self._memory:
            return dict(self._memory[0])
        return _files.read_tensors(self.path, inside, pattern, self.scratch)

    def each(self, pattern: str, inside: Sequence[str] = ()) -> list[tuple[Path, dict[str, Tensor]]]:
        """The tensors of every file of a folder on their own, sorted by name: slices of tensor parallelism."""
        if self._memory:
            return [(self.path, dict(self._memory[0]))]
        found = sorted(self.path.glob(pattern)) if self.is_folder else [self.path]
        if not found:
            raise CheckpointError(f"{self} has no {pattern}", "the whole folder as it was published")
        return [(path, _files.read_tensors(path, inside, None, self.scratch)) for path in found]


@dataclass
class Piece:
    """Tensors by published name, and the table that says what they are called here."""

    origin: str
    """For messages: where they come from."""
    table: KeyMap
    tensors: Mapping[str, Tensor]


@dataclass
class Part:
    """A base part to be written to `parts/NAME` of the run, because no folder holds it in a layout that we read."""

    holds: str
    """The module whose tensors it has, by its full name before tuners change it: `llm.model`,
    `branches.sight.encoder.tower`. The file has the names of that module's state_dict."""
    files: dict[str, Any] = field(default_factory=dict)
    """Files beside the tensors: name to a tree (JSON), a text, or the path of a file to copy."""
    dtype: str | None = None
    """Dtype of floating tensors on disk; None keeps the published one."""


HERE = f"{paths.HERE}parts/"
"""How a recipe names a part of its own run: `here:parts/llm`, valid wherever the run folder is moved."""


@dataclass
class Imported:
    """What an importer makes of its sources."""

    recipe: dict[str, Any]
    """The tree of the recipe, as it would be written in YAML. A kind that brings in an encoder alone gives
    `{"encoder": {...}}`, and the folder written is that part: files and model.safetensors, no run."""
    pieces: list[Piece] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    """Lines for the card: what was published, under which licence, which oddity was chosen."""

    def tensors(self) -> dict[str, Tensor]:
        """Our names (with `PART:NAME`) -> tensors. Raises CheckpointError, all strange names at once."""
        found: dict[str, Tensor] = {}
        for piece in self.pieces:
            found |= piece.table.into(piece.tensors)
        return found

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors of one part, under their names in its file."""
        return {n.partition(":")[2]: t for n, t in self.tensors().items() if n.startswith(f"{name}:")}


@dataclass
class Opened:
    """A run that was read back, to be written in another layout."""

    model: MultimodalModel
    recipe: Recipe
    path: Path | None = None
    """The run folder; none for a model in memory."""

    def base(self) -> Source:
        """The folder of the language model that the run stands on. Raises CheckpointError where it has none."""
        if self.model.llm.folder is None:
            raise CheckpointError(
                f"the language model `{self.recipe.model.llm.name}`, which lies in no folder", "one that does (llm: hf)"
            )
        return Source("llm", self.model.llm.folder)

    def stored(self, branch: str) -> dict[str, Tensor]:
        """The weights of a branch's encoder as its own folder holds them, whatever training made of them.

        Raises CheckpointError for an encoder without one.
        """
        encoder = self.recipe.model.branches[branch].encoder
        if encoder.weights is None:
            raise CheckpointError(f"branch {branch}: an encoder {encoder.name} without weights", "weights of its own")
        return Source(branch, Path(paths.resolve(encoder.weights)).expanduser()).tensors()

    def tensors(self, parts: Mapping[str, str]) -> dict[str, Tensor]:
        """Every tensor of the model under the names that a table's side `ours` has.

        Args:
            parts: part to the module it holds, as `{"llm": "llm.model"}`: those tensors are called `llm:NAME`.
        """
        found = {}
        for name, tensor in self.model.state_dict().items():
            part = next((p for p, module in parts.items() if name.startswith(module + ".")), None)
            found[f"{part}:{name[len(parts[part]) + 1 :]}" if part else name] = tensor.detach()
        return found


@dataclass
class ReadBack:
    """How an export is read again, to be compared with the run that it was made of."""

    sources: dict[str, Source]
    """Role to the written file, and to the base that it needs where the layout does not contain it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the importer that this run asks for."""
    branches: dict[str, str] = field(default_factory=dict)
    """Branch of the run to the branch that it becomes. Of a kind that brings in an encoder alone, the one branch."""
    prompt: str | None = None
    """Prompt template that the layout's readers use, where no option chooses one."""
    apart: tuple[str, ...] = ()
    """Branches whose encoder is left out on purpose, so that the comparison begins with the connector."""
    notes: tuple[str, ...] = ()
    """Lines for the person who exports: settings that the layout leaves to its readers."""


@dataclass
class Exported:
    """Files to be written."""

    tensors: dict[str, Mapping[str, Any]]
    """File name to tensors by published name. `*.safetensors`, or `*.pth`, `*.bin`, `*.pt` where the published code
    reads nothing else; there a mapping may be in a mapping."""
    files: dict[str, Any] = field(default_factory=dict)
    """File name to a tree (JSON), a text, or the path of a file to copy."""


class Foreign(ABC):
    """One published layout."""

    Config: ClassVar[type[ForeignConfig]] = ForeignConfig
    about: ClassVar[str] = ""
    """One line for `mmtune import --list`."""
    roles: ClassVar[tuple[Role, ...]] = ()
    several_layers: ClassVar[bool] = False
    """Whether the layout has a word for encoders whose features are those of several layers."""
    imports: ClassVar[Literal["run", "encoder", "llm"]] = "run"
    """What it makes of its sources: a whole run, or one of its parts alone."""

    def __init__(self, config: ForeignConfig) -> None:
        self.config = config

    @abstractmethod
    def read(self, sources: Mapping[str, Source]) -> Imported:
        """Role to source -> what the run is made of. An optional role that was not given is absent.

        Raises:
            CheckpointError: sources of another kind, or settings in them that mmtune has no counterpart for.
        """
        raise NotImplementedError

    def write(self, run: Opened) -> Exported:
        """A run in the published layout. A layout without a way out has no such method of its own.

        Raises:
            CheckpointError: a run that the layout has no place for.
        """
        raise NotImplementedError(f"{type(self).__name__}.write")

    def read_back(self, run: Opened, folder: Path, scratch: Path) -> list[ReadBack]:
        """How what `write` made of a run, and now is in `folder`, is read again; several where it holds several
        encoders that are brought in one by one.

        Every kind that can be written has this: nothing counts as exported before it was read back and compared.

        Args:
            scratch: folder for what pickled files are converted to.

        Raises:
            CheckpointError: a base that is not there to read it with.
        """
        raise NotImplementedError(f"{type(self).__name__}.back")

    def type_of(self, run: Opened) -> str:
        """Name of the type that everything is written in, where the option `dtype` names none."""
        return "float32"

    def outside(self, folder: Path, ask: Ask) -> None:  # noqa: B027 - most layouts have no library at hand
        """Compare with what others make of `folder`, where a library at hand reads the layout.

        Args:
            ask: what the run itself was asked, and what it said.

        Raises:
            CheckpointError: the library refuses the folder, or makes another model of it.
        """


class Ask(Protocol):
    """What a run was asked and said, for `Foreign.outside`."""

    def pictures(self) -> Iterator[tuple[Media, Example, Tensor]]:
        """Each picture asked about, uint8 [1,3,height,width]; the example made of it; the logits [T,V] of the run."""
        raise NotImplementedError

    def close(self, what: str, ours: Tensor, theirs: Tensor) -> None:
        """Raises CheckpointError for two tensors that differ by more than the type of the export explains."""
        raise NotImplementedError


def tuner_name(section: Any) -> str:
    """A section of `model.tuners` as messages name it: `bias_norm`, `hf_peft: lora`."""
    method = getattr(section, "method", None)
    return f"{section.name}: {method}" if method else str(section.name)


def is_file_name(name: str) -> bool:
    """Whether a name may be written into a folder: no path, nothing hidden."""
    return name == Path(name).name and not name.startswith(".")


def submodule(root: nn.Module, path: str) -> nn.Module:
    """The module at a dotted path; the empty path is the root. Raises CheckpointError when there is none."""
    try:
        return root.get_submodule(path)
    except AttributeError as error:
        raise CheckpointError(f"{type(root).__name__} has no module {path!r}", "a part that the model has") from error


def unlike(what: str, given: Any, expected: Any, hint: str = "") -> CheckpointError:
    """The error for a source of another kind: `raise unlike("model_type of config.json", "bert", "llava")`."""
    return CheckpointError(f"{what} is {given!r}", str(expected), hint or "choose another LAYOUT: mmtune import --list")


Contract = Foreign
