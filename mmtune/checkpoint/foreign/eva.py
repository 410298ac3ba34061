"""EVA's image tower as BLIP-2 published it: `eva_vit_g.pth`, a flat file of 40 blocks.

39 blocks are used. What comes in is the encoder `blip2_eva` with `tokens: patches` and without `ln_vision`, which
belongs to BLIP-2's own file (`blip2`). What goes out has the blocks that are used and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmtune.checkpoint.foreign import _blip2
from mmtune.checkpoint.foreign.base import Exported, Foreign, Imported, Opened, Part, Piece, ReadBack, Role, Source
from mmtune.checkpoint.keymap import KeyMap

FILE = "eva_vit_g.pth"
PART = "encoder"


class Config(_blip2.EyeConfig):
    """Options of the tower alone."""


class Eva(Foreign):
    """`eva_vit_g.pth` <-> the encoder `blip2_eva` without norm and Q-Former."""

    Config = Config
    config: Config
    about = "EVA ViT-g as published for BLIP-2"
    imports = "encoder"
    roles = (Role("eva", f"{FILE}, or the same as safetensors"),)

    def read(self, sources: Mapping[str, Source]) -> Imported:
        """Raises CheckpointError for a file that is no such tower."""
        source = sources["eva"]
        tensors = source.tensors(inside=("model", "state_dict"))
        _blip2.refuse_strange(tensors, _blip2.TOWER, source)
        sizes = _blip2.tower_sizes(tensors, "", self.config)
        ignored = _blip2.unused_tower(tensors, "", self.config.blocks)
        table = KeyMap(_blip2.tower("", f"{PART}:"), ignored)
        return Imported(
            recipe={"encoder": {"name": "blip2_eva", "tokens": "patches", "norm": False, **sizes}},
            pieces=[Piece(str(source), table, tensors)],
            parts={PART: Part(holds="tower")},
            facts={"published as": "EVA ViT-g, MIT", "blocks": f"{self.config.blocks} of the file are used"},
        )

    def write(self, run: Opened) -> Exported:
        """Raises CheckpointError for a run without such an encoder."""
        tensors = run.tensors({PART: f"branches.{_blip2.branch(run)}.encoder.tower"})
        own = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{PART}:vit.")}
        return Exported({FILE: KeyMap(_blip2.tower("", f"{PART}:")).out(own)})

    def read_back(self, run: Opened, folder: Path, scratch: Path) -> list[ReadBack]:
        branch = _blip2.branch(run)
        return [
            ReadBack(
                {"eva": Source("eva", folder / FILE, scratch)},
                _blip2.options_of(run.recipe.model.branches[branch].encoder),
                {branch: branch},
            )
        ]
