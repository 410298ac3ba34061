"""A fast tokenizer with two doors that share no key: text goes in by one, templates by the other.

What a user, a file or an expert says is encoded by a copy of the tokenizer in which every control token has another
spelling, 64 random hex digits, in the table of added tokens and in the vocabulary of the model, and in which no merge
builds one. So `</s>`, `<image>` or `<|im_start|>` inside a text become letters and signs like any other, also where
the tokenizer lists the token as "not special" (the usual switch for special tokens lets those through). A template's
pieces are cut at control strings here, and the text between is encoded by the same copy.

Spaces. Many tokenizers put a space before a text that has none (Llama, and byte-level ones with a prefix space). A
prompt is encoded piece by piece, so each piece says what stands before it, and the joined ids are those of the whole
string:

- after "start" (the beginning, or media): the tokenizer's own rule;
- after "mark" (a control token): what the tokenizer does when it reads mark and text as one string, found by trying;
- after "text": nothing is added. A piece that needs a space there begins with it.
"""

import copy
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend

from mmtune import jsons
from mmtune.errors import CheckpointError, ConfigError, DataError, MmtuneError, Reason
from mmtune.llm.base import Before, Tokenizer


class FastTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library.

    Args:
        text: its JSON, as in tokenizer.json.
        bos, eos, pad: control strings, or none. Without a pad string the end mark, the unknown token or id 0 is
            written at padding; nothing looks at these positions.
    """

    def __init__(self, text: str, bos: str | None = None, eos: str | None = None, pad: str | None = None) -> None:
        self._text = text
        self._names = (bos, eos, pad)
        self._build()

    def _build(self) -> None:
        tree = json.loads(self._text)
        # Padding, cutting and begin marks are the processor's and the template's business.
        tree.update(truncation=None, padding=None, post_processor=None)
        added = [token for token in tree.get("added_tokens", ()) if token["content"].strip()]
        whole = Backend.from_str(json.dumps(tree))
        # ids may have gaps, and each of them needs a row of the embedding
        highest = max(whole.get_vocab(with_added_tokens=True).values(), default=-1)
        self.vocabulary = max(whole.get_vocab_size(with_added_tokens=True), highest + 1)
        self._marks = {token["content"]: token for token in added}
        self.bos, self.eos, pad = self._numbers(whole)
        self._own_marks = {"{bos}": self.bos, "{eos}": self.eos}
        cuts = sorted([*self._marks, *self._own_marks], key=len, reverse=True)
        self._cut = re.compile("|".join(map(re.escape, cuts)))
        unknown = _unknown(tree["model"])
        self.pad = next(number for number in (pad, self.eos, unknown, 0) if number is not None)
        # What stands for an unknown letter comes out of ordinary text and marks nothing.
        special_ids = {token["id"] for token in added} - ({unknown} - {self.bos, self.eos})
        self.special_ids = frozenset(special_ids)
        plain = _without(tree, special_ids, unknown)
        self._own = Backend.from_str(json.dumps(plain))
        self._joined = Backend.from_str(json.dumps(_unprefixed(plain)))
        self._mark_joins = self._try_mark(whole)
        # Ids of a text at the start decode to that text, also where a space was put before it.
        self._drops_space = self._own.decode(self._own.encode("a", add_special_tokens=False).ids).startswith(" ")
        self._known: dict[tuple[str, Before], list[int]] = {}

    def _numbers(self, whole: Backend) -> list[int | None]:
        ids = [None if name is None else whole.token_to_id(name) for name in self._names]
        for name, number in zip(self._names, ids, strict=True):
            if name is not None and number is None:
                raise CheckpointError(seen=f"control token {name!r}, unknown to the tokenizer", expected="a known one")
        return ids

    def _try_mark(self, whole: Backend) -> bool:
        """Whether a text right after a mark is encoded as if it went on from text."""
        for name, mark in self._marks.items():
            if mark["id"] in self.special_ids and not (mark["rstrip"] or mark["lstrip"] or mark["single_word"]):
                ids = whole.encode(name + "a", add_special_tokens=False).ids
                if ids[:1] == [mark["id"]]:
                    return ids[1:] == self._joined.encode("a", add_special_tokens=False).ids
        return False

    def __getstate__(self) -> dict[str, Any]:
        return {"text": self._text, "names": self._names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._text, self._names = state["text"], state["names"]
        self._build()

    def encode(self, text: str, after: Before = "start") -> list[int]:
        joins = after == "text" or (after == "mark" and self._mark_joins)
        try:
            ids = (self._joined if joins else self._own).encode(text, add_special_tokens=False).ids
        except Exception as error:  # the library raises bare Exception, and TypeError for half a surrogate pair
            raise DataError(Reason.bad_text, f"text that cannot be encoded: {error}", "whole Unicode text") from error
        if not self.special_ids.isdisjoint(ids):
            raise DataError(
                Reason.bad_text, f"text that encodes to control tokens: {text[:80]!r}", "a tokenizer that can spell it"
            )
        return ids

    def encode_special(self, text: str, after: Before = "start") -> list[int]:
        key = (text, after)
        if key not in self._known:
            self._known[key] = self._encode_special(text, after)
        return list(self._known[key])

    def _encode_special(self, text: str, after: Before) -> list[int]:
        ids: list[int] = []
        last = None
        position = 0
        for found in [*self._cut.finditer(text), None]:
            between = text[position : found.start() if found else len(text)]
            mark = self._mark(found.group()) if found else None
            if last is not None and last["rstrip"]:
                between = between.lstrip()
            if mark is not None and mark["lstrip"]:
                between = between.rstrip()
            if between:
                ids += self.encode(between, after)
                after = "text"
            if found and mark:
                position = found.end()
                if mark["id"] is not None:
                    ids.append(mark["id"])
                    after, last = "mark", mark
        return ids

    def _mark(self, name: str) -> dict[str, Any]:
        """The entry of a control string; {bos} of a tokenizer that has no begin mark stands for nothing."""
        if name not in self._own_marks:
            return self._marks[name]
        number = self._own_marks[name]
        if number is None and name == "{eos}":
            raise ConfigError(
                "a template with {eos}, and a tokenizer without an end mark", "an end mark", "name one in the template"
            )
        return {"id": number, "lstrip": False, "rstrip": False}

    def decode(self, ids: Sequence[int]) -> str:
        text = self._own.decode([number for number in map(int, ids) if number not in self.special_ids])
        return text[1:] if self._drops_space and text.startswith(" ") else text

    def marks(self) -> dict[str, int]:
        """Every control string and its id."""
        return {name: mark["id"] for name, mark in self._marks.items() if mark["id"] in self.special_ids}

    def fingerprint(self) -> str:
        return hashlib.sha256(json.dumps([json.loads(self._text), self._names], sort_keys=True).encode()).hexdigest()


def load(folder: Path) -> FastTokenizer:
    """The tokenizer of a model folder: tokenizer.json, or what transformers makes of an older file.

    Raises CheckpointError when there is none.
    """
    names = _named(folder)
    file = folder / "tokenizer.json"
    if file.is_file():
        return _made(file, names)
    from transformers import AutoTokenizer

    try:
        found = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        backend = found.backend_tokenizer
    except Exception as error:
        raise CheckpointError(
            seen=f"{folder}: no tokenizer.json, and transformers makes no fast tokenizer of it ({error})",
            expected="a fast tokenizer",
            hint="save the tokenizer with a tokenizer.json first",
        ) from error
    return FastTokenizer(backend.to_str(), found.bos_token, found.eos_token, found.pad_token)


def _made(file: Path, names: tuple[str | None, str | None, str | None]) -> FastTokenizer:
    """The tokenizer of a file that somebody else wrote. Raises CheckpointError for whatever is wrong with it."""
    tree = jsons.read(file)
    try:
        return FastTokenizer(json.dumps(tree), *names)
    except MmtuneError:
        raise
    except BaseException as error:
        # the library's own language panics with an exception that is no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(
            f"{file}: {type(error).__name__}: {' '.join(str(error).split())[:300]}",
            "a tokenizer.json of the `tokenizers` library",
            "copy the folder again",
        ) from error


def _named(folder: Path) -> tuple[str | None, str | None, str | None]:
    """Begin, end and pad strings that a model folder names."""
    trees = []
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = folder / name
        if file.is_file():
            trees.append(jsons.read(file))

    def one(key: str) -> str | None:
        for tree in trees:
            value = tree.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                return value
        return None

    return one("bos_token"), one("eos_token"), one("pad_token")


def _unknown(model: dict[str, Any]) -> int | None:
    """Id that the model gives to what it cannot spell."""
    if model["type"] == "Unigram":
        return model.get("unk_id")
    return model["vocab"].get(model.get("unk_token"))


def _without(tree: dict[str, Any], special_ids: Iterable[int], unknown: int | None) -> dict[str, Any]:
    """The tokenizer with another spelling, which cannot be guessed, for every control, and no merge that builds one.

    The entries stay, because ids of others follow from their number.
    """
    tree = copy.deepcopy(tree)
    secret = {number: secrets.token_hex(32) for number in special_ids}
    # The unknown token comes from the model; as an added token it would be cut out of texts that spell it.
    tree["added_tokens"] = [
        {**token, "content": secret.get(token["id"], token["content"])}
        for token in tree.get("added_tokens", ())
        if token["id"] != unknown or unknown in secret
    ]
    model = tree["model"]
    if model["type"] == "Unigram":
        model["vocab"] = [[secret.get(number, piece), score] for number, (piece, score) in enumerate(model["vocab"])]
        return tree
    gone = {piece for piece, number in model["vocab"].items() if number in secret}
    model["vocab"] = {secret.get(number, piece): number for piece, number in model["vocab"].items()}
    if model["type"] == "BPE":
        pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
        model["merges"] = [pair for pair in pairs if gone.isdisjoint((*pair, "".join(pair)))]
    return tree


def _unprefixed(tree: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without what it does to the two ends of a text."""
    tree = copy.deepcopy(tree)
    tree["normalizer"] = _each(tree.get("normalizer"), "normalizers")
    tree["pre_tokenizer"] = _each(tree.get("pre_tokenizer"), "pretokenizers")
    return tree


def _each(step: dict[str, Any] | None, inner: str) -> dict[str, Any] | None:
    if step is None or step["type"] in ("Prepend", "Strip"):
        return None
    step = dict(step)
    if step["type"] == "Sequence":
        step[inner] = [kept for one in step[inner] if (kept := _each(one, inner)) is not None]
    elif step["type"] == "Metaspace":
        step["prepend_scheme"] = "never"
        step.pop("add_prefix_space", None)
    elif step["type"] == "ByteLevel":
        step["add_prefix_space"] = False
    return step
