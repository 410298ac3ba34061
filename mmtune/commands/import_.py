"""`mmtune import`: published checkpoints into run folders."""

from __future__ import annotations

from pathlib import Path

from mmtune import registry


def run(layout: str, paths: list[str], out: Path, options: list[str], changes: list[str]) -> None:
    """Import, and print what to do with the result. Raises as `convert.bring` does."""
    from mmtune.checkpoint import convert

    folder = convert.import_checkpoint(layout, paths, out, options, changes, say=print)
    for part in ("encoder", "llm"):
        if (folder / f"{part}.yaml").is_file():
            print(f"a part for recipes is in {folder}. Use it as in {folder / part}.yaml")
            return
    print(f"a run is in {folder}. Talk with it: mmtune chat {folder}")


def show() -> None:
    """Print every kind with its roles and options."""
    from mmtune.checkpoint import convert

    for name in registry.names(convert.ROOM):
        found = registry.find(convert.ROOM, name)
        way = "in and out" if convert.writes(found) else "in"
        print(f"{name}: {found.about} ({way})")
        for role in found.roles:
            print(f"  {f'[{role.name}=PATH]' if role.optional else f'{role.name}=PATH'}: {role.about}")
        for option, field in found.Config.model_fields.items():
            default = "needed" if field.is_required() else f"default {field.default}"
            print(f"  --option {option}=...: {' '.join((field.description or '').split())} ({default})")
