"""BLIP-2's image path: `blip2_pretrained*.pth` (Q-Former, queries, `ln_vision`) over `eva_vit_g.pth`.

What comes in is the encoder `blip2_eva`. A file of stage 1 also holds a text side, one of stage 2 a projection into its
language model; both are left out, by name. What goes out is the layout of a stage-2 file without the projection, and
the tower beside it with the blocks that are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmtune.checkpoint.foreign import _blip2
from mmtune.checkpoint.foreign.base import Exported, Foreign, Imported, Opened, Part, ReadBack, Role, Source
from mmtune.checkpoint.keymap import KeyMap
from mmtune.errors import CheckpointError

FILE = "blip2_pretrained.pth"
TOWER_FILE = "eva_vit_g.pth"
PART = "encoder"


class Config(_blip2.EyeConfig):
    """Options of the image path."""


class Blip2(Foreign):
    """BLIP-2's files <-> the encoder `blip2_eva`."""

    Config = Config
    config: Config
    about = "BLIP-2's image path: Q-Former over EVA ViT-g"
    imports = "encoder"
    roles = (
        Role("blip2", "blip2_pretrained*.pth, or the same as safetensors"),
        Role("eva", f"{TOWER_FILE}; not needed where the other file holds visual_encoder.*", optional=True),
    )

    def read(self, sources: Mapping[str, Source]) -> Imported:
        """Raises CheckpointError for files that are not BLIP-2's."""
        sizes, pieces = _blip2.eye(sources["blip2"], sources.get("eva"), PART, self.config)
        return Imported(
            recipe={"encoder": {"name": "blip2_eva", **sizes}},
            pieces=pieces,
            parts={PART: Part(holds="tower")},
            facts={
                "published as": "BLIP-2 (BSD-3-Clause code) over EVA ViT-g (MIT)",
                "left out": "text side and projection, where the file has them; blocks of the tower above "
                f"{self.config.blocks}",
            },
        )

    def write(self, run: Opened) -> Exported:
        """Raises CheckpointError for a run without such an encoder, or one that ends before the Q-Former."""
        branch = _blip2.branch(run)
        tensors = run.tensors({PART: f"branches.{branch}.encoder.tower"})
        vit = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{PART}:vit.")}
        rest = {name: t for name, t in tensors.items() if name.startswith(f"{PART}:") and name not in vit}
        if f"{PART}:query_tokens" not in rest:
            raise CheckpointError(f"branch {branch} without a Q-Former", "`tokens: queries`", "export as `eva`")
        table = KeyMap([*_blip2.norm(f"{PART}:"), *_blip2.queries(f"{PART}:")])
        return Exported(
            {
                FILE: {"model": _blip2.counted(table.out(rest))},
                TOWER_FILE: KeyMap(_blip2.tower("", f"{PART}:")).out(vit),
            }
        )

    def read_back(self, run: Opened, folder: Path, scratch: Path) -> list[ReadBack]:
        branch = _blip2.branch(run)
        files = {"blip2": folder / FILE, "eva": folder / TOWER_FILE}
        sources = {role: Source(role, path, scratch) for role, path in files.items()}
        return [ReadBack(sources, _blip2.options_of(run.recipe.model.branches[branch].encoder), {branch: branch})]
