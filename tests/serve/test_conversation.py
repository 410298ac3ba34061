"""One conversation: what joins the history and when, settings, undo, retry, stopping."""

from pathlib import Path

import pytest

from mmtune.errors import MediaError, UsageError
from mmtune.serve.conversation import Conversation, Settings
from mmtune.types import MediaRef, Quote
from tests.serve.fake import FakeEngine

PICTURE = MediaRef("image", b"picture", "picture.png")


def _talk(engine: FakeEngine | None = None, **options) -> Conversation:
    return Conversation(engine or FakeEngine(), **options)


def _said(conversation: Conversation, text: str) -> str:
    return "".join(conversation.ask(text))


def test_an_answer_joins_the_history_with_its_media_before_the_words() -> None:
    talk = _talk()
    talk.attach(PICTURE)
    assert _said(talk, "what?") == "a red circle"
    question, answer = talk.turns
    assert question.parts == (PICTURE, "what?") and answer.parts == ("a red circle",)
    assert talk.waiting == []


def test_the_second_question_is_asked_after_the_first_exchange() -> None:
    talk = _talk(system="be brief")
    _said(talk, "one")
    _said(talk, "two")
    assert talk.engine.rendered(talk.engine.samples[1]) == (
        "system: be brief\nuser: one\nassistant: a red circle\nuser: two\nassistant:"
    )


def test_numbers_of_an_answer() -> None:
    talk = _talk()
    talk.attach(PICTURE)
    answer = talk.ask("what?")
    pieces = iter(answer)
    assert next(pieces) == "a" and answer.finish == "waiting"
    text = "a" + "".join(pieces)
    record = answer.record()
    assert record["answer"] == text and record["finish"] == "stop"
    assert record["tokens"] == {"prompt": len("user: <image>what?\nassistant:"), "media": 4, "answer": len(text)}
    assert record["media"][0]["seconds"] == 0.5  # what attaching cost
    assert "".join(talk.ask("and?")) and talk.media() == [PICTURE]
    assert record["media"][0]["origin"] == "picture.png" and len(record["media"][0]["sha256"]) == 64
    assert 0 < record["seconds"]["first_token"] <= record["seconds"]["total"]


def test_an_answer_that_hits_the_limit_says_so() -> None:
    answer = _talk(settings=Settings(max_tokens=5)).ask("what?")
    assert "".join(answer) == "a red" and answer.finish == "length"


def test_a_stopped_answer_keeps_what_was_said() -> None:
    talk = _talk()
    answer = talk.ask("what?")
    pieces = iter(answer)
    assert next(pieces) + next(pieces) == "a "
    next(pieces)
    answer.close()
    assert answer.finish == "interrupted"
    assert talk.turns[1].parts == ("a r",)


def test_a_question_stopped_before_the_first_word_leaves_no_trace() -> None:
    class Slow(FakeEngine):
        def stream(self, *_):
            raise KeyboardInterrupt
            yield

    talk = _talk(Slow())
    talk.attach(PICTURE)
    with pytest.raises(KeyboardInterrupt):
        _said(talk, "what?")
    assert talk.turns == [] and talk.waiting == [PICTURE]


def test_a_failed_question_leaves_no_trace() -> None:
    class Failing(FakeEngine):
        def prompt(self, sample):
            raise UsageError("too long")

    talk = _talk(Failing())
    talk.attach(PICTURE)
    with pytest.raises(UsageError):
        _said(talk, "what?")
    assert talk.turns == [] and talk.waiting == [PICTURE]


def test_an_answer_is_said_when_it_is_looked_at() -> None:
    talk = _talk()
    answer = talk.ask("what?")
    assert talk.engine.samples == []
    assert str(answer) == answer.text == "a red circle" and answer.finish == "stop"
    assert len(talk.engine.samples) == 1 and "".join(answer) == "a red circle"
    assert talk.ask("what?").answer_tokens == 12
    with pytest.raises(AttributeError, match="no 'texts'"):
        _ = answer.texts


def test_an_answer_that_nobody_looked_at_is_said_before_the_conversation_goes_on() -> None:
    talk = _talk()
    talk.attach(PICTURE)
    talk.ask("one")
    assert [turn.text for turn in talk.turns] == ["one", "a red circle"] and talk.waiting == []
    talk.ask("two")
    assert talk.ask("three").text == "a red circle"
    assert [turn.text for turn in talk.turns[2::2]] == ["two", "three"]


def test_an_answer_left_in_the_middle_stands_as_far_as_it_was_said() -> None:
    talk = _talk()
    for _ in talk.ask("what?"):
        break
    assert [turn.text for turn in talk.turns] == ["what?", "a"]


def test_what_goes_wrong_with_an_answer_that_nobody_looked_at_is_told_once() -> None:
    talk = _talk()
    talk.engine.prompt = lambda _: (_ for _ in ()).throw(UsageError("too long"))
    talk.ask("one")
    with pytest.raises(UsageError, match="too long"):
        _ = talk.turns
    assert talk.turns == []


def test_a_broken_medium_is_refused_when_it_is_shown() -> None:
    talk = _talk()
    with pytest.raises(MediaError, match=r"bad\.png"):
        talk.attach(MediaRef("image", b"broken", "bad.png"))
    assert talk.waiting == []


def test_a_file_may_be_attached_by_its_path(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    talk = _talk()
    talk.attach(path)
    assert talk.ask("what?").whole() == "a red circle"
    assert talk.media() == [MediaRef("image", path, str(path))]


def test_an_empty_question_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        _talk().ask("  \n")


def test_undo_forgets_the_last_exchange_only() -> None:
    talk = _talk()
    _said(talk, "one")
    _said(talk, "two")
    assert talk.undo().text == "two"
    assert [turn.text for turn in talk.turns] == ["one", "a red circle"]


def test_undo_puts_media_and_quotes_back() -> None:
    talk = _talk()
    quote = Quote("me", "EXIT")
    talk.attach(PICTURE)
    talk.quote(quote)
    _said(talk, "one")
    talk.undo()
    assert talk.turns == [] and talk.waiting == [PICTURE, quote]
    _said(talk, "two")
    assert talk.turns[0].parts == (PICTURE, quote, "two")
    talk.retry().whole()
    talk.undo()
    assert talk.waiting == [PICTURE, quote]


def test_undo_and_retry_need_an_answer() -> None:
    for act in (lambda talk: talk.undo(), lambda talk: talk.retry()):
        with pytest.raises(UsageError, match="nothing"):
            act(_talk())


def test_retry_asks_the_same_with_the_next_seed() -> None:
    talk = _talk(settings=Settings(temperature=1.0, seed=7))
    talk.attach(PICTURE)
    _said(talk, "what?")
    talk.engine.answer = "a blue star"
    assert "".join(talk.retry()) == "a blue star"
    assert talk.engine.samples[0] == talk.engine.samples[1]
    assert [seed for _, _, seed in talk.engine.drawn] == [7, 8]
    assert [turn.text for turn in talk.turns] == ["what?", "a blue star"]


def test_a_failed_retry_keeps_the_old_answer() -> None:
    talk = _talk()
    _said(talk, "what?")
    talk.engine.answer = ""

    def fail(*_):
        raise UsageError("no")

    talk.engine.stream = fail
    with pytest.raises(UsageError):
        "".join(talk.retry())
    assert [turn.text for turn in talk.turns] == ["what?", "a red circle"]


def test_clear_forgets_turns_and_waiting_media() -> None:
    talk = _talk(system="be brief")
    _said(talk, "what?")
    talk.attach(PICTURE)
    talk.clear()
    assert talk.turns == [] and talk.waiting == [] and talk.media() == []
    assert talk.system == "be brief"


def test_quotes_join_the_turn_as_marked_parts() -> None:
    talk = _talk()
    talk.attach(PICTURE)
    talk.quote(Quote("ocr", "EXIT"))
    _said(talk, "what does it say?")
    assert talk.turns[0].parts == (PICTURE, Quote("ocr", "EXIT"), "what does it say?")
    assert talk.transcript()["turns"][0]["parts"][1] == {"type": "quote", "source": "ocr", "text": "EXIT"}


def test_rendered_is_what_a_question_would_continue() -> None:
    talk = _talk(system="be brief")
    talk.attach(PICTURE)
    assert talk.rendered() == "system: be brief\nuser: <image>\nassistant:"


@pytest.mark.parametrize(("name", "value"), [("max_tokens", 0), ("temperature", -0.1), ("temperature", float("nan"))])
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    settings = Settings()
    before = vars(settings).copy()
    with pytest.raises(UsageError, match=name):
        settings.change(name, value)
    assert vars(settings) == before
    with pytest.raises(UsageError, match=name):
        Settings(**{name: value})


def test_a_notebook_shows_what_an_answer_says() -> None:
    class Printer:
        def text(self, text: str) -> None:
            self.shown = text

    talk, printer = Conversation(FakeEngine()), Printer()
    answer = talk.ask("what?")
    assert repr(answer) == "<Answer '', waiting>", "looked at by a debugger, nothing is computed"
    answer._repr_pretty_(printer, False)
    assert printer.shown == answer.text == "a red circle" and "of 1 questions" in repr(talk)
