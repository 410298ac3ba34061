"""Make the pocket tokenizer: a byte-level BPE trained on text of the world only.

    python tools/pocket/make_tokenizer.py OUT

Lower case, one leading space per text, words split at blanks and sentence marks only, so that every word of the world
(`top-left` too) is one token. Writes tokenizer.json and tokenizer_config.json. Seeded; takes seconds.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from notes import CHATTER, MOMENTS, chatter
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mmtune.data.world.language import CAPTION_PROMPTS, captions, questions, vocabulary
from mmtune.data.world.scene import draw_scene

SPECIAL_TOKENS = [
    "<|pad|>", "<|bos|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|media|>", "<|/media|>",
    "<|quote|>", "<|/quote|>",
]  # fmt: skip
VOCABULARY = 1024


def corpus(scenes: int = 6000) -> list[str]:
    rng = random.Random("tokenizer")
    lines = (
        [" ".join(MOMENTS), "ocr: caption: nothing sign hear zero"] * 400
        + vocabulary() * 400
        + list(CAPTION_PROMPTS) * 200
    )
    for index in range(scenes):
        scene = draw_scene(rng, ("easy", "full")[index % 2], "train")
        lines += [rng.choice(captions(scene, rng))] + [
            f"{q.question} {q.answer}" for q in questions(scene, rng, heard=True)
        ]
        lines += [" ".join(chatter(rng)) for _ in range(2)]
    return lines + [f"{a} {answer}" for asked, answer in CHATTER for a in asked] * 20


def make(out: Path) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Strip(), normalizers.Prepend(" ")]
    )
    split = pre_tokenizers.Split(Regex(r" ?[^\s.,?!:;]+| ?[.,?!:;]|\s+"), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        corpus(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL_TOKENS,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            min_frequency=2,
            show_progress=False,
        ),
    )
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1024, "clean_up_tokenization_spaces": False,
        "pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|end|>",
        "additional_special_tokens": SPECIAL_TOKENS[3:],
    }  # fmt: skip
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
    return tokenizer


if __name__ == "__main__":
    made = make(Path(sys.argv[1]))
    broken = [w for w in [*vocabulary(), *MOMENTS] if len(made.encode(w).ids) != 1]
    print(f"{made.get_vocab_size()} tokens; words of several tokens: {broken or 'none'}")
