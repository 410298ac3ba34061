"""Streaming text: the pieces joined are the decoded whole, and no half character is shown."""

from hypothesis import given
from hypothesis import strategies as st

from mmtune.serve.text import TextStream, printable


def _bytes(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


def _pieces(decode, ids: list[int]) -> list[str]:
    stream = TextStream(decode)
    return [*(stream.push(token) for token in ids), stream.flush()]


@given(st.text())
def test_pieces_of_bytes_join_to_the_text(text: str) -> None:
    assert "".join(_pieces(_bytes, list(text.encode()))) == text


@given(st.lists(st.integers(0, 255)))
def test_broken_bytes_join_to_what_decoding_says(ids: list[int]) -> None:
    assert "".join(_pieces(_bytes, ids)) == _bytes(ids)


def test_a_character_appears_with_its_last_byte() -> None:
    assert _pieces(_bytes, list("né".encode())) == ["n", "", "é", ""]


def test_text_is_shown_at_once() -> None:
    assert _pieces(_bytes, list(b"red")) == ["r", "e", "d", ""]


@given(st.lists(st.sampled_from(["▁a", "▁red", "circle", ",", "▁"]), max_size=30))
def test_a_tokenizer_that_drops_the_first_blank_loses_no_other(words: list[str]) -> None:
    names = ["▁a", "▁red", "circle", ",", "▁"]

    def decode(ids: list[int]) -> str:
        return "".join(names[i] for i in ids).replace("▁", " ").removeprefix(" ")

    ids = [names.index(word) for word in words]
    assert "".join(_pieces(decode, ids)) == decode(ids)


def test_cost_does_not_grow_with_the_answer() -> None:
    longest = 0

    def decode(ids: list[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return _bytes(ids)

    _pieces(decode, list(b"x" * 1000))
    assert longest < 20


def test_escape_sequences_do_not_reach_a_terminal() -> None:
    assert printable("red\x1b[2J\x9b1m\x07\rcircle\n\tok é") == "red[2J1mcircle\n\tok é"
