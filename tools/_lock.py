"""Write requirements.lock: the exact versions, in this environment, of all that mmtune needs to run and be tested.

    .venv/bin/python tools/_lock.py

Starts from the dependencies and the extras `dev`, `ocr` and `parquet` of pyproject.toml and follows
what they need. Packages that exist for one platform only keep a marker, so that the same file installs elsewhere.
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LINUX = "sys_platform == 'linux' and platform_machine == 'x86_64'"
ONE_PLATFORM = re.compile(r"^(nvidia-.*|cuda-.*|triton)$")
DECORD = f"({LINUX}) or sys_platform == 'win32'"


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(wanted: list[str]) -> dict[str, str]:
    """Name to version of all requirements and what they need here."""
    found: dict[str, str] = {}
    todo = [Requirement(text) for text in wanted]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        need = todo.pop()
        key = (canonical(need.name), frozenset(need.extras))
        if key in seen:
            continue
        seen.add(key)
        package = metadata.distribution(need.name)
        found[key[0]] = package.version
        for text in package.requires or ():
            inner = Requirement(text)
            extras = [*need.extras, ""]
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(inner)
    return found


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    # setuptools: needed by torch from Python 3.12 on, so it is not found by looking around under 3.11
    extras = [need for name in ("dev", "ocr", "parquet") for need in project["optional-dependencies"][name]]
    found = closure([*project["dependencies"], *extras, "setuptools"])
    lines = [
        "# Everything mmtune is tested with, together. Made by tools/_lock.py; lower bounds are in pyproject.toml.",
        "# pip install -r requirements.lock && pip install --no-deps --no-build-isolation -e .",
    ]
    for name, version in sorted(found.items()):
        marker = DECORD if name == "decord" else LINUX if ONE_PLATFORM.match(name) else ""
        lines.append(f"{name}=={version.partition('+')[0]}" + (f" ; {marker}" if marker else ""))
    (ROOT / "requirements.lock").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(found)} packages in requirements.lock")


if __name__ == "__main__":
    main()
