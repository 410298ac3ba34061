"""What every expert of the room keeps: options with remarks, known kinds, a version, and no weight before it looks."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from mmtune import config, registry, testing

ROOT = Path(__file__).resolve().parents[2]
TINY = {"caption": {"run": "mmtune:pocket/chat"}}
"""Options that an expert cannot do without."""
HEAVY = ("torch", "numpy", "transformers", "rapidocr", "onnxruntime", "cv2", "PIL")


@pytest.mark.parametrize("name", registry.names("experts"))
def test_contract(name: str) -> None:
    testing.check("experts", name, TINY.get(name))


def test_naming_an_expert_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom mmtune import registry, config\n"
        f"for name, more in {[(name, TINY.get(name, {})) for name in registry.names('experts')]!r}:\n"
        "    cls = registry.find('experts', name)\n"
        "    cls(config.validate(cls.Config, {'name': name, **more})).version\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_an_installed_package_may_bring_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "signs-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: signs\nVersion: 1.0\n")
    lines = ["[mmtune.experts]", "signs = tests.experts.fakes:Fake", "ocr = tests.experts.fakes:Fake", "Odd = no:Thing"]
    (package / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    from tests.experts.fakes import Fake

    assert "signs" in registry.names("experts") and "Odd" not in registry.names("experts")
    assert registry.source("experts", "signs") == "tests.experts.fakes:Fake"
    assert registry.find("experts", "signs") is Fake  # what is installed needs no other word
    assert registry.find("experts", "ocr") is not Fake  # a file of the room goes before
    assert "signs" not in registry.names("encoders")
    listed = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
         "sys.argv = ['mmtune', 'list', 'experts']\nfrom mmtune.cli import main\nmain()"],
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    assert {"ocr", "caption", "signs"} <= set(listed.stdout.split())


def test_the_schema_of_a_recipe_knows_experts() -> None:
    from mmtune.recipe import ChatSection

    chat = json.dumps(config.schema(ChatSection))
    assert all(name in chat for name in ("ocr", "caption", "min_score"))
