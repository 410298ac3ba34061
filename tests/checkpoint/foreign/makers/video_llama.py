"""A tiny Video-LLaMA: VL and AL files over a LLaMA, BLIP-2's files and ImageBind's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.checkpoint.foreign.made import Made
from tests.checkpoint.foreign.makers import _eye, blip2
from tests.llm.tiny import folder as llama
from tests.llm.tiny import llama_bpe

LLM, EAR = 32, 12
SIGHT = {"queries": 4, "width": 16, "hidden": 64, "depth": 2, "every": 1, "memory": 16}
SOUND = {**SIGHT, "queries": 2, "memory": EAR}
OPTIONS = [*blip2.OPTIONS, "sound_heads=2"]


def imagebind() -> _eye.Shapes:
    """Names and shapes of a tiny sound tower, and a tensor of another sense."""
    width, start, trunk = 8, "modality_preprocessors.audio", "modality_trunks.audio.blocks.0"
    shapes: _eye.Shapes = {
        f"{start}.cls_token": (1, 1, width),
        f"{start}.rgbt_stem.proj.weight": (width, 1, 16, 16),
        f"{start}.pos_embedding_helper.pos_embed": (1, 1 + 12 * 19, width),
        f"{trunk}.attn.in_proj_weight": (3 * width, width),
        f"{trunk}.attn.in_proj_bias": (3 * width,),
        f"{trunk}.attn.bias_k": (1, 1, width),
        f"{trunk}.attn.bias_v": (1, 1, width),
        "modality_heads.audio.2.weight": (EAR, width),
        "modality_postprocessors.audio.1.log_logit_scale": (),
        "modality_heads.text.proj.1.weight": (EAR, width),
    }
    shapes |= _eye.norm(f"{start}.rgbt_stem.norm_layer", width) | _eye.norm("modality_heads.audio.0", width)
    shapes |= _eye.norm(f"{trunk}.norm_1", width) | _eye.norm(f"{trunk}.norm_2", width)
    shapes |= _eye.linear(f"{trunk}.attn.out_proj", width, width)
    shapes |= _eye.linear(f"{trunk}.mlp.fc1", width, 4 * width)
    return shapes | _eye.linear(f"{trunk}.mlp.fc2", 4 * width, width)


def make(folder: Path) -> Made:
    tokenizer = llama_bpe()
    paths = {"llm": llama(folder / "llm", tokenizer=tokenizer), "vl": folder / "vl.pth"}
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (paths["llm"] / "tokenizer_config.json").write_text(json.dumps(names))
    vl = _eye.draw(_eye.sight(SIGHT, LLM)) | _eye.counter("video_")
    torch.save({"model": vl, "epoch": 2}, paths["vl"])
    # As training wrote it: the counters of all Q-Formers and the scale of ImageBind are buffers, and stay in.
    al = _eye.draw(_eye.sound(SOUND, LLM)) | _eye.counter("audio_") | _eye.counter("video_") | _eye.counter()
    al["audio_encoder.modality_postprocessors.audio.1.log_logit_scale"] = torch.tensor(2.9957)
    eva = _eye.draw(_eye.tower(**_eye.TINY))
    others = {"blip2": blip2.tensors(), "eva": eva, "al": al, "imagebind": _eye.draw(imagebind())}
    for role, tensors in others.items():
        # Pickled files each take a process to be read, and one of them is enough.
        paths[role] = folder / f"{role}.safetensors"
        save_file(tensors, paths[role])
    return Made(paths, paths["vl"], OPTIONS, inside=("model",), written="video_llama_vl.pth")
