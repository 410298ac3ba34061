"""A `tokenizer.model` of sentencepiece as the JSON that `tokenizers` reads, without the sentencepiece package.

The file is one protobuf message; the few fields that decide ids are read here. Byte-pair models only, which those of
LLaMA are: a piece is built by the merge with the best score, and the order of merges in the JSON is the order of
scores. Refused by name: unigram models, character tables of a normalizer, and squeezing of blanks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

from mmtune.errors import CheckpointError

BLANK = "\u2581"
"""What sentencepiece writes for a space."""
NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4
"""Types of pieces that this file distinguishes."""


def to_json(content: bytes, origin: str = "tokenizer.model") -> dict[str, Any]:
    """The tree of a tokenizer.json. Raises CheckpointError for a file that is damaged or of another kind."""
    try:
        pieces, trainer, normalizer = _read(content)
    except (IndexError, struct.error, UnicodeDecodeError, ValueError) as error:
        raise CheckpointError(f"{origin}: {error}", "a model file of sentencepiece", "copy it again") from error
    kind, bytewise = trainer.get(3, 1), bool(trainer.get(35, 0))
    if kind != 2 or not pieces:
        raise CheckpointError(f"{origin}: {len(pieces)} pieces, model type {kind}", "a byte-pair model (type 2)")
    if normalizer.get(2) or normalizer.get(4, 1) or not normalizer.get(5, 1):
        raise CheckpointError(
            f"{origin} changes characters or squeezes blanks before it reads a text",
            "a model that reads a text as it is, as those of LLaMA",
            "save the tokenizer with a tokenizer.json, and take the transformers layout",
        )
    vocab = {text: number for number, (text, _, _) in enumerate(pieces)}
    if len(vocab) != len(pieces):
        raise CheckpointError(f"{origin}: {len(pieces) - len(vocab)} pieces twice", "pieces that differ")
    added = [
        {
            "id": number,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != USER,
        }
        for number, (text, _, kind) in enumerate(pieces)
        if kind in (UNKNOWN, CONTROL, USER)
    ]
    unknown = next((text for text, _, kind in pieces if kind == UNKNOWN), None)
    prefix = [{"type": "Prepend", "prepend": BLANK}] if normalizer.get(3, 1) else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, replaced]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": BLANK}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": unknown,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": bytewise,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": _merges(pieces),
        },
    }


def marks(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree of a tokenizer_config.json: begin and end marks under the names that LLaMA gives them, where known."""
    known = {token["content"] for token in tree["added_tokens"]}
    return {key: text for key, text in (("bos_token", "<s>"), ("eos_token", "</s>")) if text in known}


def _merges(pieces: list[tuple[str, float, int]]) -> list[list[str]]:
    """Every way to build an ordinary piece of two, best score first."""
    number = {text: offset for offset, (text, _, kind) in enumerate(pieces) if kind == NORMAL}
    found = []
    for text, score, kind in pieces:
        if kind != NORMAL:
            continue
        halves = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        whole = [(left, right) for left, right in halves if left in number and right in number]
        whole.sort(key=lambda pair: (number[pair[0]], number[pair[1]]))
        found += [(-score, number[text], list(pair)) for pair in whole]
    found.sort(key=lambda merge: merge[:2])
    return [pair for _, _, pair in found]


def _read(content: bytes) -> tuple[list[tuple[str, float, int]], dict[int, Any], dict[int, Any]]:
    """(text, score, type) of every piece; the fields of the trainer and of the normalizer by number."""
    pieces = []
    trainer: dict[int, Any] = {}
    normalizer: dict[int, Any] = {}
    for field, value in _fields(content):
        if field == 1:
            piece = dict(_fields(value))
            pieces.append((piece[1].decode(), float(piece.get(2, 0.0)), int(piece.get(3, NORMAL))))
        elif field == 2:
            trainer = dict(_fields(value))
        elif field == 3:
            normalizer = dict(_fields(value))
    return pieces, trainer, normalizer


def _fields(content: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of every field of a protobuf message: int, float, or bytes of a text or message."""
    offset = 0
    while offset < len(content):
        tag, offset = _varint(content, offset)
        kind = tag & 7
        if kind == 0:
            value, offset = _varint(content, offset)
        elif kind == 1:
            value, offset = struct.unpack_from("<d", content, offset)[0], offset + 8
        elif kind == 2:
            length, offset = _varint(content, offset)
            value, offset = content[offset : offset + length], offset + length
            if len(value) != length:
                raise ValueError("the file ends inside a field")
        elif kind == 5:
            value, offset = struct.unpack_from("<f", content, offset)[0], offset + 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        yield tag >> 3, value


def _varint(content: bytes, offset: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = content[offset]
        value |= (byte & 127) << shift
        offset, shift = offset + 1, shift + 7
        if byte < 128:
            return value, offset
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
