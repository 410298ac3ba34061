"""Text never becomes structure; joined pieces are the whole; decode turns encode back."""

import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from mmtune import config, paths
from mmtune.errors import CheckpointError, ConfigError, DataError
from mmtune.llm import _tokenizer
from mmtune.llm._tokenizer import FastTokenizer
from mmtune.prompt import Template
from tests.llm import tiny

PLAIN = ("<image>", "<video>", "[INST]")  # added tokens that are not special


def unigram():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("<image>", -1.0), ("▁", -2.0)]
    pieces += [(chr(c), -3.0) for c in range(33, 127)] + [("ab", -1.5), ("/s", -0.1)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.add_tokens(["<image>"])
    return tokenizer


def words():
    names = ["<unk>", "</s>", "<image>", "a", "b"]
    tokenizer = Tokenizer(models.WordLevel({name: n for n, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.add_tokens(["<image>"])
    return tokenizer


def greedy_bpe():
    """A BPE that takes a whole word of its vocabulary before it looks at merges, and has a control word there."""
    tree = json.loads(tiny.byte_bpe(marks=("</s>", "<|x|>"), prefix=False, plain=("<image>",)).to_str())
    tree["model"]["ignore_merges"] = True
    return Tokenizer.from_str(json.dumps(tree))


def merging_bpe():
    """Merges that build a control string out of letters."""
    vocab = {"a": 0, "<": 1, "s": 2, ">": 3, "<s": 4, "<s>": 5, "a<s>": 6}
    tokenizer = Tokenizer(models.BPE(vocab, [("<", "s"), ("<s", ">"), ("a", "<s>")]))
    tokenizer.add_special_tokens(["<s>"])
    return tokenizer


BACKENDS = {
    "byte": lambda: tiny.byte_bpe(marks=("</s>", "<|im_start|>"), prefix=False, plain=PLAIN),
    "byte_prefix": lambda: tiny.byte_bpe(marks=("</s>", "<|im_start|>"), plain=PLAIN),
    "llama_legacy": lambda: tiny.llama_bpe(True, plain=PLAIN),
    "llama_first": lambda: tiny.llama_bpe(False, plain=PLAIN),
    "unigram": unigram,
    "words": words,
    "greedy": greedy_bpe,
    "merging": merging_bpe,
}
MADE = {name: make() for name, make in BACKENDS.items()}


def fast(name, **names):
    return FastTokenizer(MADE[name].to_str(), **names)


MADE_FAST = {name: fast(name) for name in BACKENDS}


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_control_id_comes_out_of_text(name, data):
    tokenizer = MADE_FAST[name]
    marks = list(tokenizer.marks())
    assert marks
    cut = st.sampled_from(marks).flatmap(lambda mark: st.sampled_from([mark[:n] for n in range(1, len(mark) + 1)]))
    rest = st.sampled_from(marks).flatmap(lambda mark: st.sampled_from([mark[n:] for n in range(len(mark))]))
    piece = st.one_of(st.sampled_from(marks), cut, rest, st.sampled_from(["", " ", "a", "\n"]), st.text(max_size=4))
    text = "".join(data.draw(st.lists(piece, max_size=6)))
    for after in ("start", "mark", "text"):
        assert tokenizer.special_ids.isdisjoint(tokenizer.encode(text, after))


@pytest.mark.parametrize("name", BACKENDS)
def test_every_control_string_is_text_by_one_door_and_a_mark_by_the_other(name):
    tokenizer = MADE_FAST[name]
    for mark, number in tokenizer.marks().items():
        assert tokenizer.encode_special(mark) == [number]
        assert number not in tokenizer.encode(mark)
        assert number not in tokenizer.encode(f"a {mark}b{mark}")


@pytest.mark.parametrize("name", ["byte", "byte_prefix", "llama_legacy", "llama_first"])
@pytest.mark.parametrize(
    "text", ["a red circle", "</s>", "héllo ☃ 你好", "<|im_start|>user\n", " two  blanks ", "[INST]"]
)
def test_decode_turns_encode_back(name, text):
    if name in ("byte_prefix", "llama_first"):
        text = text.lstrip()  # these tokenizers cannot tell "a" from " a"
    assert MADE_FAST[name].decode(MADE_FAST[name].encode(text)) == text


@pytest.mark.parametrize("name", ["byte", "byte_prefix", "llama_legacy", "llama_first"])
def test_joined_pieces_equal_the_whole_string(name):
    """What is encoded piece by piece, each told what stands before it, is what the tokenizer makes of the whole."""
    tokenizer = MADE_FAST[name]
    whole = MADE[name].encode("</s>A red USER: what is this ASSISTANT: a circle</s>USER: how", add_special_tokens=False)
    ids, after = [], "start"
    for door, piece in (
        ("encode_special", "</s>"),
        ("encode", "A red"),
        ("encode_special", " USER:"),
        ("encode", " what is this"),
        ("encode_special", " ASSISTANT:"),
        ("encode", " a circle"),
        ("encode_special", "</s>"),
        ("encode_special", "USER:"),
        ("encode", " how"),
    ):
        new = getattr(tokenizer, door)(piece, after)
        ids += new
        after = "mark" if new[-1] in tokenizer.special_ids else "text"
    assert ids == whole.ids


def test_control_strings_with_text_between():
    tokenizer = MADE_FAST["byte"]
    start = tokenizer.marks()["<|im_start|>"]
    end = tokenizer.marks()["</s>"]
    expected = [start, *tokenizer.encode("user\n"), end, *tokenizer.encode("\n")]
    assert tokenizer.encode_special("<|im_start|>user\n</s>\n") == expected


def test_own_marks_by_their_role():
    tokenizer = fast("byte", eos="</s>")
    assert tokenizer.encode_special("{bos}a{eos}") == [*tokenizer.encode("a"), tokenizer.eos]
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("{eos}"))
    with pytest.raises(ConfigError, match="end mark"):
        fast("byte").encode_special("{eos}")


def test_marks_that_strip_blanks_do_so_inside_a_control_string():
    tree = json.loads(MADE["byte"].to_str())
    next(token for token in tree["added_tokens"] if token["content"] == "</s>")["rstrip"] = True
    tokenizer = FastTokenizer(json.dumps(tree))
    assert tokenizer.encode_special("</s> \n a") == [tokenizer.marks()["</s>"], *tokenizer.encode("a", "text")]


def test_runs_of_blanks_are_text_though_added():
    backend = tiny.byte_bpe(marks=("</s>",), prefix=False, plain=("<image>", "    ", "<video>"))
    tokenizer = FastTokenizer(backend.to_str())
    four = backend.token_to_id("    ")
    assert four not in tokenizer.special_ids and tokenizer.encode("a    b") == [*tokenizer.encode("a"), four, 66]
    assert backend.decode([66]) == "b"


def test_half_a_character_is_bad_text():
    with pytest.raises(DataError, match="cannot be encoded") as caught:
        MADE_FAST["byte"].encode("a\ud800b")
    assert caught.value.reason == "bad_text"


def test_a_control_sign_that_cannot_be_spelled_otherwise_is_refused_not_let_through():
    tokenizer = Tokenizer(models.WordLevel({"</s>": 0, "a": 1}, unk_token="</s>"))
    tokenizer.add_special_tokens(["</s>"])
    with pytest.raises(DataError):
        FastTokenizer(tokenizer.to_str(), eos="</s>").encode("b")


@pytest.mark.parametrize("name", BACKENDS)
def test_pickles(name):
    tokenizer = MADE_FAST[name]
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("a ab <image>") == tokenizer.encode("a ab <image>")
    assert again.fingerprint() == tokenizer.fingerprint()


def test_fingerprint_tells_marks_apart():
    assert fast("byte").fingerprint() != fast("byte", eos="</s>").fingerprint()


def test_unknown_names_are_refused():
    with pytest.raises(CheckpointError, match="<nix>"):
        fast("byte", pad="<nix>")


def test_pad_falls_back():
    assert fast("byte", eos="</s>").pad == fast("byte", eos="</s>").eos


def test_the_shipped_templates_fit_their_tokenizers():
    folder = paths.PACKAGE / "pocket" / "llm"
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("this installation holds no pocket checkpoints")
    tokenizer = _tokenizer.load(folder)
    template = config.load(Template, "pocket", builtin="prompts")
    for text in (*template.tokens, *template.stop):
        (number,) = tokenizer.encode_special(text)
        assert number in tokenizer.special_ids
