"""Imports go down only, third-party packages stay behind their borders, and looking at mmtune costs nothing."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mmtune"

FLOORS = {
    "types": 0, "errors": 0, "version": 0, "pocket": 0, "output": 0, "renamed": 1, "disk": 0, "addresses": 0,
    "safe_path": 0, "guard": 0, "children": 1,
    "config": 1, "registry": 1, "paths": 1, "layers": 1, "media": 1,
    "random_state": 0, "dtypes": 1, "collate": 1, "items": 2, "jsons": 1, "weights_file": 1, "sharded": 0,
    "encoders": 2, "connectors": 2, "llm": 2, "prompt": 2, "params": 2,
    "fusion": 3, "tuners": 3, "optimizers": 3, "draft": 3,
    "recipe": 4, "bounds": 4, "other_models": 2,
    "processor": 5, "model": 5, "frozen_model": 5, "generate": 5, "reference": 5, "sequences": 5,
    "data": 6, "checkpoint": 6, "objectives": 6,
    "training": 7, "eval": 7, "experts": 7,
    "serve": 8, "testing": 8,
    "cli": 9, "commands": 9, "__main__": 9, "__init__": 9,
}  # fmt: skip
"""The house: what stands on a floor may import what stands below it."""

NEIGHBOURS = {
    ("types", "errors"),
    ("errors", "addresses"),
    ("config", "registry"),
    ("config", "paths"),
    ("config", "renamed"),
    ("media", "config"),
    ("generate", "model"),
    ("frozen_model", "model"),
    ("reference", "model"),
    ("sequences", "model"),
    ("training", "eval"),  # a run asks the questions of its task while it trains
    ("cli", "commands"),
    ("__main__", "cli"),
}
"""Imports on one floor that are meant; every other pair there does not know each other."""

BORDERS = {
    "accelerate": ("training/distributed.py",),
    "transformers": ("llm/", "encoders/hf_*.py", "experts/_pipeline.py"),
    "tokenizers": ("llm/",),
    "open_clip": ("encoders/clip.py",),
    "timm": ("encoders/timm_vit.py",),
    "peft": ("tuners/hf_peft.py",),
    "decord": ("media/",),
    "torchcodec": ("media/",),
    "cv2": ("media/",),
    "av": ("media/", "data/world/"),
    "torchaudio": ("media/", "encoders/"),
    "webdataset": ("data/",),
    "fsspec": ("data/fetch.py",),
    "pyarrow": ("data/convert/columns.py",),
    "bitsandbytes": ("optimizers/adamw_8bit.py",),
    "tensorboard": ("training/trackers.py",),
    "wandb": ("training/trackers.py",),
    "rapidocr": ("experts/",),
    "onnxruntime": ("experts/",),
    "typer": ("cli/", "commands/"),
    "huggingface_hub": ("llm/", "encoders/", "checkpoint/"),
}
"""Package to the files that may import it; a name that ends in a slash is a room."""

HEAVY = ("torch", "transformers", "numpy", "open_clip", "timm", "peft", "accelerate", "av", "decord", "PIL", "pydantic")

FILES = sorted(path for path in PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The name in FLOORS of a file of the package."""
    inside = path.relative_to(PACKAGE)
    return inside.parts[0] if len(inside.parts) > 1 else inside.stem


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and full name of every import, those inside functions and under TYPE_CHECKING included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            if node.module == "mmtune":
                for alias in node.names:
                    yield node.lineno, f"mmtune.{alias.name}"
            else:
                yield node.lineno, node.module or ""


def offences(path: Path, source: str) -> list[str]:
    """Imports of a file that go up, sideways, or over a border."""
    here, found = room(path), []
    inside = path.relative_to(PACKAGE).as_posix()
    for line, name in imports(ast.parse(source)):
        top, *rest = name.split(".")
        where = f"{inside}:{line} imports {name}"
        if top == "mmtune" and rest and rest[0] != "__version__":
            there = rest[0]
            if there not in FLOORS:
                found.append(f"{where}: {there} is on no floor")
            elif there != here and FLOORS[there] >= FLOORS[here] and (here, there) not in NEIGHBOURS:
                found.append(f"{where}: floor {FLOORS[here]} knows nothing of {there} on floor {FLOORS[there]}")
        elif top in BORDERS and not any(_within(path, border) for border in BORDERS[top]):
            found.append(f"{where}: only {', '.join(BORDERS[top])} may")
    return found


def _within(path: Path, border: str) -> bool:
    inside = path.relative_to(PACKAGE)
    return inside.as_posix().startswith(border) if border.endswith("/") else inside.match(border)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_go_down_and_borders_hold(path: Path) -> None:
    assert room(path) in FLOORS, f"{room(path)} has no floor; give it one in FLOORS"
    assert offences(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("types.py", "from mmtune.config import Config"),
        ("encoders/clip.py", "from mmtune.connectors.base import Connector"),
        ("processor.py", "from mmtune import model"),
        ("config.py", "def f():\n    from mmtune.recipe import Recipe"),
        ("data/shards.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import mmtune.training.loop"),
        ("training/loop.py", "import accelerate"),
        ("encoders/clip.py", "from transformers import AutoModel"),
        ("encoders/clip.py", "from mmtune.attic import thing"),
    ],
)
def test_the_check_sees_offences(where: str, source: str) -> None:
    assert len(offences(PACKAGE / where, source)) == 1


@pytest.mark.parametrize(
    ("where", "source"),
    [
        ("encoders/hf_vision.py", "import transformers.models"),
        ("encoders/clip.py", "from mmtune.media.base import Sampling\nfrom mmtune.encoders import _weights"),
        ("training/loop.py", "from mmtune import config, model, __version__"),
        ("config.py", "from mmtune import registry"),
    ],
)
def test_the_check_lets_the_right_ones_pass(where: str, source: str) -> None:
    assert offences(PACKAGE / where, source) == []


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for path in FILES}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


CONVERTER = PACKAGE / "checkpoint/foreign/_unpickle.py"
"""The one file that opens pickles: a script for a child process, which nobody imports for what it does."""


def test_the_converter_opens_pickles_without_running_them() -> None:
    calls = [node for node in ast.walk(ast.parse(CONVERTER.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    opened = [node for node in calls if "load" in ast.unparse(node.func).split(".")[-1]]
    assert {ast.unparse(node.func) for node in opened} == {"load", "torch.load"}
    for node in opened:
        if ast.unparse(node.func) == "torch.load":
            assert {word.arg: ast.unparse(word.value) for word in node.keywords}["weights_only"] == "True"


@pytest.mark.parametrize("path", sorted({*FILES} - {CONVERTER}), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nothing_is_run_that_came_as_data(path: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.split(".")[0] in ("pickle", "dill", "marshal", "shelve", "joblib")]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in ("eval", "exec", "torch.load", "yaml.unsafe_load", "yaml.full_load", "np.load", "numpy.load"):
                safe = name.endswith("np.load") or name == "numpy.load"
                pickles = [word for word in node.keywords if word.arg == "allow_pickle"]
                if not safe or any(ast.unparse(word.value) != "False" for word in pickles):
                    found.append(f"line {node.lineno}: {name}")
            trusting = [word for word in node.keywords if word.arg == "trust_remote_code"]
            found += [f"line {node.lineno}: trust_remote_code" for w in trusting if ast.unparse(w.value) != "False"]
    assert found == []


def _python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


LOADED = f"import sys; print(sorted(set({HEAVY!r}) & set(sys.modules)))"


def test_importing_mmtune_pulls_nothing_heavy() -> None:
    assert _python(f"import mmtune; {LOADED}").strip() == "[]"


HELP = """
import sys
from mmtune.__main__ import main
sys.argv = ["mmtune", "--help"]
try:
    main()
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
"""


def test_help_pulls_nothing_heavy() -> None:
    heavy = tuple(name for name in HEAVY if name != "pydantic")
    code = f"{HELP}\nprint('LOADED', sorted(set({heavy!r}) & set(sys.modules)))"
    assert _python(code).strip().splitlines()[-1] == "LOADED []"


@pytest.mark.parametrize("code", ["import mmtune", HELP], ids=["import", "help"])
def test_looking_costs_less_than_half_a_second(code: str) -> None:
    """Processor time, the least of four tries: a busy machine does not fail this, a heavy import does."""
    times = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        _python(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5, times


def test_the_verbs() -> None:
    import mmtune

    assert set(dir(mmtune)) >= {"load", "chat", "train", "__version__"}
    with pytest.raises(AttributeError, match="the verbs are load, chat, train"):
        mmtune.trian  # noqa: B018
    code = "import types, mmtune.training.optim, mmtune; print(type(mmtune.train) is types.FunctionType)"
    assert _python(code).split() == ["True"]
