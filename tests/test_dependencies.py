"""What pyproject.toml asks for is what the package imports: nothing that nothing uses, nothing that is not named."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULES = {"pillow": "PIL", "pyyaml": "yaml", "open_clip_torch": "open_clip", "s3fs": "fsspec"}
"""Names of modules that are not those of the package; s3fs is what fsspec asks for s3://."""
THROUGH = {"tensorboard": "torch.utils.tensorboard", "onnxruntime": "rapidocr"}
"""Packages that another one imports for us, and the module for which it does."""
LENT = {"torchcodec", "decord2", "pydantic_core", "huggingface_hub"}
"""Used where they are there: decoders that have to fit the system, and parts of packages that are asked for."""


def imported() -> set[str]:
    """Dotted names of all modules that the package imports, those by `import_module` too."""
    found = set()
    for path in (ROOT / "mmtune").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {one.name for one in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
            elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
                found |= {one.value for one in node.args if isinstance(one, ast.Constant)}
    return found


def asked(needs: list[str]) -> dict[str, str]:
    """Package to the module that it gives."""
    packages = [re.split(r"[><=;\[ ]", need)[0] for need in needs]
    return {name: THROUGH.get(name, MODULES.get(name, name)) for name in packages}


def test_every_dependency_is_imported() -> None:
    extras = [need for name, needs in PROJECT["optional-dependencies"].items() if name != "dev" for need in needs]
    modules = imported()
    tops = {name.partition(".")[0] for name in modules}
    wanted = asked([*PROJECT["dependencies"], *extras])
    assert not [name for name, module in wanted.items() if module not in (modules if "." in module else tops)]


def test_every_import_is_a_dependency() -> None:
    needs = [*PROJECT["dependencies"], *(need for many in PROJECT["optional-dependencies"].values() for need in many)]
    known = {*asked(needs).values(), *LENT, "mmtune", *sys.stdlib_module_names}
    assert sorted({name.partition(".")[0] for name in imported()} - known) == []
