"""LLaVA 1.5 and 1.6 in the layout of transformers (`llava`, `llava_next`), as in the llava-hf repositories.

In: the folder is taken apart into a vision tower and a language model, which are base parts of the run, and the
projector (for 1.6 with `image_newline`), which is what trains. Out: any run of an `hf_vision` tower, an `mlp` of two
layers as wide as the language model (or `anyres` with it) and fusion `tokens`. What `peft` merges is merged on the
way out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from mmtune.checkpoint.foreign import _llava, _llava_out, _llava_outside, _merged
from mmtune.checkpoint.foreign._llava import SIGHT, Layout
from mmtune.checkpoint.foreign.base import (
    Ask,
    Exported,
    Foreign,
    ForeignConfig,
    Imported,
    Opened,
    Piece,
    ReadBack,
    Role,
    Source,
)
from mmtune.checkpoint.keymap import KeyMap, Rule
from mmtune.errors import CheckpointError

KINDS = ("llava", "llava_next")


class Config(ForeignConfig):
    prompt: str = "vicuna"
    """Prompt template: vicuna for 1.5 and for 1.6 on Vicuna, mistral for 1.6 on Mistral, llava_chatml for 1.6 on Yi."""
    resize: Literal["crop", "pad"] | None = None
    """`pad` brings pictures to a square as the original training of 1.5 did; null follows the folder, and the
    published folders crop. Not for 1.6."""
    pool: tuple[int, int, int] | None = None
    """Bins over frames, rows and columns that a video is pooled to, for PLLaVA to be tuned from this checkpoint (there
    [16, 12, 12]). Pictures are not cut into tiles then, and the end of a row that 1.6 learned is left out."""
    names: Literal["published", "saved", "inner"] = "published"
    """For export: how names are spelled. `published` is that of the llava-hf repositories and is read by every version;
    `saved` is what transformers 5 writes; `inner` are the names of its modules."""


class LlavaHf(Foreign):
    """See the module."""

    Config = Config
    config: Config
    several_layers = True
    about: ClassVar[str] = "LLaVA 1.5 and 1.6 in transformers' layout, as in the llava-hf repositories"
    roles: ClassVar[tuple[Role, ...]] = (Role("folder", "folder with config.json, weights and tokenizer"),)

    @staticmethod
    def table(layout: Layout, newline: bool, pooled: bool = False) -> KeyMap:
        """The names of a whole folder.

        Args:
            newline: whether it is 1.6, with its learned end of a row.
            pooled: whether the connector is `pool`, which has no use for that.
        """
        layers = ("linear_1", "linear_2") if pooled else ("layers.0", "layers.1")
        rules = [
            *_llava.tower(layout),
            *_llava.projector(layout, *layers),
            *_llava.language_model(layout),
        ]
        if newline and pooled:
            return KeyMap(rules, ignore=(*_llava.UNUSED, f"{layout.root}image_newline"))
        if newline:
            rules.append(Rule(f"{layout.root}image_newline", f"{SIGHT}.connector.newline"))
        return KeyMap(rules, ignore=_llava.UNUSED)

    def read(self, sources: Mapping[str, Source]) -> Imported:
        source = sources["folder"]
        hf_config = source.json()
        _llava.check(hf_config, KINDS, several=True)
        later, pooled = hf_config["model_type"] == "llava_next", self.config.pool is not None
        tiled = later and not pooled
        if tiled and self.config.resize is not None:
            raise CheckpointError("option resize for LLaVA 1.6", "none: it cuts pictures into tiles")
        tensors = source.tensors()
        return Imported(
            recipe=self._recipe(hf_config, tiled),
            pieces=[Piece(str(source), self.table(Layout.of(tensors), later, pooled), tensors)],
            parts=_llava.parts(source, hf_config, "inner.tower" if tiled else "tower"),
            facts={"what it is": f"LLaVA 1.{6 if later else 5}; the licence of its language model applies"},
        )

    def _recipe(self, hf_config: Mapping[str, Any], tiled: bool) -> dict[str, Any]:
        more = {"resize": self.config.resize} if self.config.resize else {}
        encoder = _llava.encoder(hf_config, **more)
        connector: dict[str, Any] = {"name": "mlp", "depth": 2}
        kinds = ["image"]
        if self.config.pool is not None:
            time, height, width = self.config.pool
            connector = {"name": "pool", "time": time, "height": height, "width": width, "short": "repeat"}
            encoder |= {"frames": time, "rule": "pllava"}
            kinds = ["image", "video"]
        if tiled:
            connector = {"name": "anyres", "depth": 2}
            encoder = {"name": "anyres", "encoder": encoder, "weights": encoder["weights"]}
            if "image_grid_pinpoints" in hf_config:
                encoder["grids"] = hf_config["image_grid_pinpoints"]
        prompt = self.config.prompt
        return {
            "title": f"LLaVA 1.{6 if hf_config['model_type'] == 'llava_next' else 5}, imported",
            "model": {
                "branches": {"sight": {"encoder": encoder, "connector": connector, "kinds": kinds}},
                "llm": {"name": "hf", "folder": f"{_llava.HERE}llm"},
                "fusion": {"name": "tokens"},
            },
            "streams": {"instruct": {"data": ["llava_665k"], "prompt": prompt}},
            "groups": {"connector": {"match": [f"{SIGHT}.connector.*"], "lr": 2e-5}},
            "run": {"length": 2048 if kinds == ["image"] and not tiled else 4096, "batch_tokens": 4096},
            "chat": {"prompt": prompt, "max_tokens": 512},
        }

    def write(self, run: Opened) -> Exported:
        tiled = any(branch.encoder.name == "anyres" for branch in run.recipe.model.branches.values())
        encoder, connector = _llava_out.branch_of(run, *(("anyres", "anyres") if tiled else ("mlp", "hf_vision")))
        inner = encoder.inner if tiled else encoder
        if tiled:
            _llava_out.check_inner(inner)
        hf_config = _llava_out.config_of(run, KINDS[tiled], inner)
        hf_config["architectures"] = ["LlavaNextForConditionalGeneration" if tiled else "LlavaForConditionalGeneration"]
        if tiled:
            hf_config["image_grid_pinpoints"] = [list(grid) for grid in encoder.config.grids]
        llm, files = _merged.language_model(run), _llava_out.tokenizer_of(run)
        hf_config["image_token_index"] = _llava_out.placeholder(
            files, llm, hf_config["text_config"], run.model.llm.tokenizer.vocabulary
        )
        ours = {f"sight:{name}": tensor for name, tensor in inner.tower.state_dict().items()}
        ours |= {f"llm:{name}": tensor for name, tensor in llm.items()}
        ours |= {f"{SIGHT}.connector.{name}": tensor for name, tensor in connector.state_dict().items()}
        _llava_out.tie(hf_config, ours)
        kind = "LlavaNextImageProcessor" if tiled else "LlavaImageProcessor"
        padded = inner.pixels.resize == "pad"
        pixels = _llava_out.preprocessor_of(inner.pixels, kind if tiled or padded else "CLIPImageProcessor")
        if tiled:
            pixels["image_grid_pinpoints"] = hf_config["image_grid_pinpoints"]
        processor = {
            "processor_class": "LlavaNextProcessor" if tiled else "LlavaProcessor",
            "image_token": _llava_out.IMAGE,
            "patch_size": inner.structure["patch_size"],
            "vision_feature_select_strategy": hf_config["vision_feature_select_strategy"],
            "num_additional_image_tokens": 1,
        }
        files |= {"config.json": hf_config, "preprocessor_config.json": pixels, "processor_config.json": processor}
        table = self.table(_llava.LAYOUTS[self.config.names], tiled)
        return Exported({"model.safetensors": table.out(ours)}, files)

    def type_of(self, run: Opened) -> str:
        return _llava_out.type_of(run)

    def read_back(self, run: Opened, folder: Path, scratch: Path) -> list[ReadBack]:
        (branch,) = run.recipe.model.branches
        options = {"prompt": run.recipe.chat.prompt}
        return [ReadBack({"folder": Source("folder", folder, scratch)}, options, {branch: "sight"})]

    def outside(self, folder: Path, ask: Ask) -> None:
        """As `transformers` opens it: the same pixels, and the same logits."""
        _llava_outside.compare(folder, ask)
