"""Video-LLaMA: its VL file (pictures and video) and AL file (sound) over LLaMA, EVA, BLIP-2's Q-Former and ImageBind.

A VL or AL file holds the parameters that were trained, under "model", and the counters that every BERT stores. Each is
one connector `video_qformer` here, with a base of its own: branch `sight` behind `blip2_eva`, branch `sound` behind
`imagebind_audio`.

What the published weights depend on is set by name in the recipe: frames by the rule `video_llama`, sound clips spaced
`short` and centred `running`. The sound branch was trained on pictures, whose ImageBind features have norm 1, and is
published to be used on sound, whose features have norm 20; nothing here makes up for that, as in the published code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmtune.checkpoint.foreign import _blip2, _imagebind, _llm
from mmtune.checkpoint.foreign.base import (
    HERE,
    Exported,
    Foreign,
    Imported,
    Opened,
    Part,
    Piece,
    ReadBack,
    Role,
    Source,
    tuner_name,
)
from mmtune.checkpoint.keymap import KeyMap, Rule
from mmtune.encoders import imagebind_audio
from mmtune.errors import CheckpointError

EYE, EAR = "eye", "ear"
SIGHT, SOUND = "sight", "sound"
FILES = {SIGHT: "video_llama_vl.pth", SOUND: "video_llama_al.pth"}
HEADS = {SIGHT: "video_", SOUND: "audio_"}
TABLES = {SIGHT: "video_frame_position_embedding", SOUND: "audio_position_embedding"}
PROJECTIONS = {SIGHT: "llama_proj", SOUND: "audio_llama_proj"}
BUFFERS = (
    _blip2.counter(),
    *(_blip2.counter(head) for head in HEADS.values()),
    "llama_model.{rest*}.rotary_emb.inv_freq",
    "audio_encoder.modality_preprocessors.text.mask",
    "audio_encoder.modality_postprocessors.{modality}.{n}.log_logit_scale",
)
"""Names of tensors that are computed and not learned, which the published code stores in every file."""
FROZEN = (
    "visual_encoder.{rest*}",
    "ln_vision.{leaf}",
    "query_tokens",
    "Qformer.{rest*}",
    "llama_model.{rest*}",
    "audio_encoder.{rest*}",
)
"""Names of parts that training never changed."""


class Config(_blip2.EyeConfig):
    """Options of the import."""

    frames: int = 8
    """Frames taken from a video; the position table has room for more."""
    prompt: Literal["video_llama", "video_llama2"] = "video_llama2"
    """Template that the weights were tuned with: `video_llama` with Vicuna v0, `video_llama2` with Llama-2 chat."""
    sound_heads: int = 12
    """Attention heads of ImageBind's sound tower."""
    frozen: Literal["refuse", "leave"] = "refuse"
    """What becomes of frozen parts inside a VL or AL file: refused, or left out in favour of the base files."""


def connector(which: str, ours: str) -> list[Rule]:
    """Rules of a branch's connector; `which` is sight or sound, `ours` the full name of the connector with a dot."""
    return [
        *_blip2.queries(ours, HEADS[which]),
        Rule(f"{TABLES[which]}.weight", f"{ours}frame_positions.weight"),
        Rule(f"{PROJECTIONS[which]}.{{leaf}}", f"{ours}proj.{{leaf}}"),
    ]


def connector_sizes(which: str, tensors: Mapping[str, Tensor], heads: int) -> dict[str, Any]:
    """Settings of `video_qformer` that a file's tensors tell, the published ones where they do not.

    Raises CheckpointError for a Q-Former with layers that look at nothing.
    """
    queries, rows = {SIGHT: (32, 32), SOUND: (8, 8)}[which]
    sizes = _blip2.qformer_sizes(tensors, HEADS[which], depth=2, queries=queries, cross_every=1)
    if sizes.pop("cross_every") != 1:
        raise CheckpointError(f"{HEADS[which]}Qformer has layers without cross-attention", "one in each layer")
    frames = _blip2.common(tensors, rf"{TABLES[which]}\.weight", 0, rows)
    return {"name": "video_qformer", **sizes, "heads": heads, "frames": frames}


class VideoLlama(Foreign):
    """VL and AL files <-> the connectors of a run with branches after `blip2_eva` and `imagebind_audio`."""

    Config = Config
    config: Config
    about = "Video-LLaMA's VL and AL files over their base pieces"
    roles = (
        Role("llm", "folder of Vicuna v0 or Llama-2 chat"),
        Role("vl", "VL_LLaMA_2_7B_Finetuned.pth or another file of the vision branch"),
        Role("blip2", "blip2_pretrained_flant5xxl.pth"),
        Role("eva", "eva_vit_g.pth", optional=True),
        Role("al", "AL_LLaMA_2_7B_Finetuned.pth or another file of the audio branch", optional=True),
        Role("imagebind", "imagebind_huge.pth, for the audio branch", optional=True),
    )

    def read(self, sources: Mapping[str, Source]) -> Imported:
        """Raises CheckpointError for files of another kind, or an audio branch without its ImageBind."""
        llm, parts, pieces = _llm.locate(sources["llm"])
        pieces, sections = [*pieces], {}
        for one, other in (("vl", "blip2"), ("al", "imagebind")):
            if (one in sources) != (other in sources):
                branch = "vision" if one == "vl" else "audio"
                raise CheckpointError(
                    f"one of `{one}` and `{other}` alone", f"both for the {branch} branch, or neither"
                )
        if not {"vl", "al"} & sources.keys():
            raise CheckpointError(
                "neither `vl` nor `al`", "the file of the vision branch, of the audio branch, or both"
            )
        if "vl" in sources:
            eye, eye_pieces = _blip2.eye(sources["blip2"], sources.get("eva"), EYE, self.config)
            pieces += eye_pieces
            parts = {**parts, EYE: Part(holds=f"branches.{SIGHT}.encoder.tower")}
            encoder = {"name": "blip2_eva", "weights": HERE + EYE, "frames": self.config.frames, "rule": "video_llama"}
            sections[SIGHT] = {"encoder": {**encoder, **eye}, **self._branch(SIGHT, sources["vl"], pieces)}
        facts = {"published as": "Video-LLaMA over its base pieces; the weights are for research, not commercial use"}
        if "al" in sources:
            sections[SOUND] = {**self._ear(sources["imagebind"], pieces), **self._branch(SOUND, sources["al"], pieces)}
            parts[EAR] = Part(holds=f"branches.{SOUND}.encoder")
            rows = sections[SOUND]["connector"]["frames"]
            sections[SOUND]["encoder"]["frames"] = rows
            facts["sound"] = (
                f"ImageBind is {_imagebind.LICENCE}; clips are spaced `short` and centred `running`; the branch was "
                "trained on features of norm 1 and hears features of norm 20, as published"
            )
        return Imported(_recipe(sections, llm, self.config.prompt), pieces, parts, facts)

    def _branch(self, which: str, source: Source, pieces: list[Piece]) -> dict[str, Any]:
        """The connector's section; its piece is added to `pieces`."""
        tensors = source.tensors(inside=("model",))
        starts = (f"{HEADS[which]}query", f"{HEADS[which]}Qformer.", TABLES[which], PROJECTIONS[which])
        _blip2.refuse_strange(tensors, starts, source)
        ignored = [*BUFFERS, *(FROZEN if self.config.frozen == "leave" else ())]
        table = KeyMap(connector(which, f"branches.{which}.connector."), ignored)
        pieces.append(Piece(str(source), table, tensors))
        return {"connector": connector_sizes(which, tensors, self.config.qformer_heads)}

    def _ear(self, source: Source, pieces: list[Piece]) -> dict[str, Any]:
        """The encoder's section; its piece is added to `pieces`."""
        tensors = _imagebind.pick(source.tensors(), "audio")
        pieces.append(Piece(str(source), KeyMap(_imagebind.rules("audio", f"{EAR}:")), tensors))
        section = _imagebind.encoder(tensors, "audio", heads=self.config.sound_heads)
        return {"encoder": {**section, "weights": HERE + EAR, "spacing": "short"}}

    def write(self, run: Opened) -> Exported:
        """The VL file, and the AL file where the run has a branch of sound; base pieces stay what they are.

        Raises CheckpointError for a run without such branches, or with connectors that the layout has no place for.
        """
        if tuners := ", ".join(map(tuner_name, run.recipe.model.tuners)):
            raise CheckpointError(
                f"a language model tuned by {tuners}",
                "one that was left as it is: the files hold what stands before it",
                "keep the run folder: `mmtune chat` and `mmtune eval` take it as it is",
            )
        files = {}
        for which, encoders in ((SIGHT, EYES), (SOUND, EARS)):
            name = _find(run, encoders)
            if name is None:
                continue
            ours = f"branches.{name}.connector."
            held = {key: tensor for key, tensor in run.tensors({}).items() if key.startswith(ours)}
            files[FILES[which]] = {"model": _blip2.counted(KeyMap(connector(which, ours)).out(held), HEADS[which])}
        if not files:
            raise CheckpointError(
                "a run without a branch of `blip2_eva` or ImageBind behind `video_qformer`", "Video-LLaMA's branches"
            )
        return Exported(files)

    def read_back(self, run: Opened, folder: Path, scratch: Path) -> list[ReadBack]:
        sources, names, apart = {"llm": run.base()}, {}, []
        options: dict[str, Any] = {}
        if run.recipe.chat.prompt in ("video_llama", "video_llama2"):
            options["prompt"] = run.recipe.chat.prompt
        if (name := _find(run, EYES)) is not None:
            names[name] = SIGHT
            held = {f"{EYE}:{key}": tensor for key, tensor in run.stored(name).items()}
            sources["vl"] = Source("vl", folder / FILES[SIGHT], scratch)
            sources["blip2"] = Source.memory("blip2", _eye_out(held))
            encoder = run.recipe.model.branches[name].encoder
            options |= {**_blip2.options_of(encoder), "frames": encoder.frames}
        if (name := _find(run, EARS)) is not None:
            names[name] = SOUND
            sources["al"] = Source("al", folder / FILES[SOUND], scratch)
            encoder, width = run.recipe.model.branches[name].encoder, run.model.branches[name].encoder.width
            if encoder.name == "imagebind_audio":
                held = {f"{EAR}:{key}": tensor for key, tensor in run.stored(name).items()}
                tower = KeyMap(_imagebind.rules("audio", f"{EAR}:")).out(held)
                options["sound_heads"] = encoder.heads
            else:  # trained on pictures, to be used after the sound tower, which the run does not have
                tower, apart = _stand_in(width), [name]
                options["sound_heads"] = 1
            sources["imagebind"] = Source.memory("imagebind", tower)
        return [ReadBack(sources, options, names, prompt=run.recipe.chat.prompt, apart=tuple(apart))]


EYES, EARS = ("blip2_eva",), ("imagebind_audio", "imagebind_vision")


def _eye_out(held: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BLIP-2's file with the tower inside it."""
    rules = [*_blip2.tower("visual_encoder.", f"{EYE}:"), *_blip2.norm(f"{EYE}:"), *_blip2.queries(f"{EYE}:")]
    return KeyMap(rules).out(held)


def _stand_in(width: int) -> dict[str, Tensor]:
    """A sound tower of the least size whose vectors have this width, where only the parts after it are compared."""
    config = imagebind_audio.Config(tower_width=1, depth=1, heads=1, out=width)
    state = {f"{EAR}:{name}": tensor for name, tensor in imagebind_audio.ImagebindAudio(config).state_dict().items()}
    return KeyMap(_imagebind.rules("audio", f"{EAR}:")).out(state)


def _find(run: Opened, encoders: Sequence[str]) -> str | None:
    """The branch with one of these encoders and a `video_qformer`."""
    for name, one in run.recipe.model.branches.items():
        if one.encoder.name in encoders and one.connector.name == "video_qformer":
            return name
    return None


def _recipe(branches: Mapping[str, Any], llm: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    """The tree of a run that goes on where the published training ended: stage 2 of each branch."""
    rates = {"lr": 3e-5, "weight_decay": 0.05}
    return {
        "title": "Video-LLaMA, from its published files",
        "model": {"branches": dict(branches), "llm": dict(llm), "fusion": {"name": "tokens"}},
        "streams": {"instruct": {"data": ["llava_150k"], "prompt": prompt}},
        "groups": {name: {"match": [f"branches.{name}.connector.*"], **rates} for name in branches},
        "chat": {"prompt": prompt},
    }
