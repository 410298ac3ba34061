"""Experts in a conversation: who is on, where what they say goes, and that nothing of theirs stops an answer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmtune
from mmtune import config, registry
from mmtune.errors import ConfigError, DataError, Reason, UsageError
from mmtune.experts._runner import Finding
from mmtune.media import Limits
from mmtune.recipe import ChatSection
from mmtune.serve import chat as chats
from mmtune.serve.conversation import Conversation, Settings
from mmtune.serve.experts import Adviser, Panel, parse, with_quotes
from mmtune.serve.repl import Repl
from mmtune.serve.run_info import RunInfo
from mmtune.types import MediaRef, Quote, Sample, Turn
from tests.serve.fake import FakeEngine, FakeRunInfo

ROOT = Path(__file__).resolve().parents[2]
FAKE = "tests.experts.fakes:Fake"
SIGN, OTHER = MediaRef("image", b"say EXIT", "sign.png"), MediaRef("image", b"say WC", "other.png")
HANGS = MediaRef("image", b"hang", "hang.png")
SOUND = MediaRef("audio", b"say AH", "a.wav")
EXIT = Quote("Fake", "EXIT")


@pytest.fixture
def panel(tmp_path: Path) -> Iterator[Panel]:
    made = Panel([f"{FAKE}:min_score=0.5"], tmp_path)
    yield made
    made.close()


def said(talk: Conversation, text: str = "what?"):
    answer = talk.ask(text)
    assert answer.whole() == "a red circle"
    return answer


@pytest.mark.parametrize(
    ("spec", "name", "options"),
    [
        ("ocr", "ocr", {}),
        ("ocr:min_score=0.9", "ocr", {"min_score": 0.9}),
        ("ocr:min_score=0.9,frames=8,turned=true", "ocr", {"min_score": 0.9, "frames": 8, "turned": True}),
        ("caption:run=a/b.c", "caption", {"run": "a/b.c"}),
        (FAKE, FAKE, {}),
        (f"{FAKE}:text=GO: now, please,frames=2", FAKE, {"text": "GO: now, please", "frames": 2}),
        ({"name": "ocr", "side": 320}, "ocr", {"side": 320}),
    ],
)
def test_an_expert_is_named_with_options(spec, name: str, options: dict) -> None:
    made = parse(spec)
    assert made.name == name and {key: getattr(made, key) for key in options} == options
    assert parse(made) is made


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("orc", ConfigError, "one of ocr"),
        ("", UsageError, "NAME"),
        ("ocr:fast", ConfigError, "no module ocr"),
        ("ocr:a b", UsageError, "NAME"),
        ("ocr:fames=3", ConfigError, "frames"),
        ("ocr:frames=many", ConfigError, "frames"),
        ("ocr:frames='", ConfigError, "plain YAML"),
        ("ocr:frames", ConfigError, "no module ocr"),
        ("no.such:Thing", ConfigError, "no module no"),
        ("tests.experts.fakes:Config", ConfigError, "a subclass of"),
        ({"side": 3}, UsageError, "without a name"),
    ],
)
def test_a_name_that_is_none_is_refused_at_once(spec, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Panel([spec])


def test_evidence_stands_behind_its_medium(panel: Panel) -> None:
    talk = Conversation(FakeEngine(), experts=panel)
    talk.attach(SIGN)
    talk.attach(OTHER)
    answer = said(talk)
    assert talk.turns[0].parts == (SIGN, EXIT, OTHER, Quote("Fake", "WC"), "what?")
    assert [finding.status for finding in answer.experts] == ["found", "found"]
    assert [one["text"] for one in answer.record()["experts"]] == ["EXIT", "WC"]
    assert "<image>[Fake: EXIT]<image>[Fake: WC]what?" in talk.rendered()
    assert {"type": "quote", "source": "Fake", "text": "EXIT"} in talk.transcript()["turns"][0]["parts"]


def test_what_was_told_is_not_told_again(panel: Panel) -> None:
    talk = Conversation(FakeEngine(), experts=panel)
    talk.attach(SIGN)
    said(talk)
    assert said(talk, "and?").experts == () and talk.turns[2].parts == ("and?",)


def test_an_expert_that_comes_later_hears_of_earlier_media(panel: Panel) -> None:
    talk = Conversation(FakeEngine(), experts=Panel())
    talk.attach(SIGN)
    assert said(talk).experts == ()
    talk.experts = panel
    said(talk, "and now?")
    assert talk.turns[2].parts == (EXIT, "and now?")


def test_after_undo_it_is_told_again(panel: Panel) -> None:
    talk = Conversation(FakeEngine(), experts=panel)
    talk.attach(SIGN)
    said(talk)
    talk.undo()
    assert talk.waiting == [SIGN]
    [finding] = said(talk).experts
    assert finding.cached and talk.turns[0].parts == (SIGN, EXIT, "what?")
    talk.clear()
    talk.attach(SIGN)
    assert len(said(talk).experts) == 1


def test_retry_keeps_what_was_said_and_asks_who_is_new(panel: Panel) -> None:
    talk = Conversation(FakeEngine(), experts=Panel())
    talk.attach(SIGN)
    said(talk)
    talk.experts = panel
    for times in (1, 0):
        answer = talk.retry()
        answer.whole()
        assert len(answer.experts) == times
        assert len(talk.turns) == 2 and talk.turns[0].parts == (SIGN, EXIT, "what?")
    assert said(talk, "and?").experts == ()


def test_a_failed_retry_forgets_nothing(panel: Panel) -> None:
    talk = Conversation(FakeEngine(), experts=panel)
    talk.attach(SIGN)
    said(talk)
    stream, talk.engine.stream = talk.engine.stream, None
    with pytest.raises(TypeError):
        talk.retry().whole()
    talk.engine.stream = stream
    assert talk.turns[0].parts == (SIGN, EXIT, "what?") and said(talk, "and?").experts == ()


def test_kinds_that_it_does_not_look_at_are_left_alone(panel: Panel) -> None:
    talk = Conversation(FakeEngine(), experts=panel)
    talk.attach(SOUND)
    assert said(talk).experts == () and talk.turns[0].parts == (SOUND, "what?")


@pytest.mark.parametrize("what", [b"raise", b"die", b"crash", b"numbers", b"nan"])
def test_a_failing_expert_does_not_stop_the_answer(panel: Panel, what: bytes) -> None:
    talk = Conversation(FakeEngine(), experts=panel)
    ref = MediaRef("image", what, "x.png")
    talk.attach(ref)
    [finding] = said(talk).experts
    assert finding.status == "failed" and finding.note and talk.turns[0].parts == (ref, "what?")
    assert finding.line().count("\n") == 0 and "going on without it" in finding.line()


def test_a_hanging_expert_does_not_stop_the_answer(tmp_path: Path) -> None:
    talk = Conversation(FakeEngine(), experts=Panel([f"{FAKE}:seconds=0.01"], tmp_path))
    talk.attach(HANGS)
    [finding] = said(talk).experts
    assert "in time" in finding.note


@pytest.mark.parametrize("reason", [Reason.too_long, Reason.bad_text])
def test_evidence_that_cannot_be_used_is_left_out(panel: Panel, reason: Reason) -> None:
    class Strict(FakeEngine):
        def prompt(self, sample: Sample):
            if any(isinstance(part, Quote) for turn in sample.turns for part in turn.parts):
                raise DataError(reason, "no")
            return super().prompt(sample)

    talk = Conversation(Strict(), experts=panel)
    talk.attach(SIGN)
    [finding] = said(talk).experts
    assert reason in finding.note and finding.quote is None and talk.turns[0].parts == (SIGN, "what?")
    talk.quote(Quote("mine", "EXIT"))
    talk.attach(OTHER)
    with pytest.raises(DataError):  # the person's own quote is not thrown away
        said(talk)


def test_a_stopped_question_asks_again(panel: Panel) -> None:
    class Stopped(FakeEngine):
        def prompt(self, sample: Sample):
            raise KeyboardInterrupt

    talk = Conversation(Stopped(), experts=panel)
    talk.attach(SIGN)
    with pytest.raises(KeyboardInterrupt):
        talk.ask("what?").whole()
    assert talk.waiting == [SIGN] and talk.turns == []
    talk.engine = FakeEngine()
    assert len(said(talk).experts) == 1


def test_who_is_on_can_change(panel: Panel) -> None:
    assert panel.names == [FAKE] and len(panel) == 1
    assert panel.hear([SIGN, SIGN], "what?")[0].quote == EXIT and len(panel.hear([SIGN, SIGN], "what?")) == 1
    assert panel.switch_on(f"{FAKE}:min_score=0") == FAKE
    assert panel.hear([SIGN], "what?")[0].quote == Quote("Fake", "EXIT / dim")
    panel.switch_off(FAKE)
    assert panel.names == [] and panel.hear([SIGN], "what?") == []
    with pytest.raises(UsageError, match="is not on"):
        panel.switch_off(FAKE)


def test_an_expert_that_heeds_the_question_is_asked_every_time(tmp_path: Path) -> None:
    panel = Panel([f"{FAKE}:ask=true"], tmp_path)
    talk = Conversation(FakeEngine(), experts=panel)
    talk.attach(MediaRef("image", b"question", "x.png"))
    for text in ("what?", "where?"):
        [finding] = said(talk, text).experts
        assert finding.evidence[0].text == text
    panel.close()


def test_quotes_about_one_medium_stand_together() -> None:
    findings = [Finding("a", SIGN, "found", quote=EXIT), Finding("b", SIGN, "found", quote=Quote("b", "x"))]
    earlier = Finding("a", OTHER, "found", quote=Quote("a", "WC"))
    turn = with_quotes(Turn("user", (SIGN, "what?")), [*findings, earlier, Finding("c", SIGN, "failed", note="no")])
    assert turn.parts == (Quote("a", "WC"), SIGN, EXIT, Quote("b", "x"), "what?")


def test_samples_are_advised_and_failures_are_told_once(panel: Panel) -> None:
    lines: list[str] = []
    adviser = Adviser(panel, lines.append)
    bad = MediaRef("image", b"raise", "bad.png")
    advised = adviser.advise(Sample("x", (Turn("user", (SIGN, "what?")),)))
    assert advised.turns[0].parts == (SIGN, EXIT, "what?")
    for _ in range(2):
        assert adviser.advise(Sample("x", (Turn("user", (bad, "what?")),))).turns[0].parts == (bad, "what?")
    assert len(lines) == 1 and "ValueError" in lines[0]
    assert adviser.record() == {"asked": FAKE, "found": 1, "nothing": 0, "failed": 2}


# ------------------------------------------------------------------------------------------------ where they are named


def test_a_recipe_names_experts() -> None:
    section = config.validate(ChatSection, {"experts": ["ocr", {"name": "ocr", "frames": 2}]})
    assert [expert.frames for expert in section.experts] == [4, 2]
    assert config.validate(ChatSection, section.model_dump(mode="json")) == section
    with pytest.raises(ConfigError, match="'orc'"):
        config.validate(ChatSection, {"experts": ["orc"]})


def test_a_plan_knows_the_experts_of_its_recipe(tmp_path: Path) -> None:
    head = "model: {branches: {sight: {kinds: [image]}}}\n"
    (tmp_path / "recipe.yaml").write_text(
        head + "limits: {points: 7}\n"
        "chat: {notice: '', max_tokens: 4, temperature: 0, experts: [{name: ocr, frames: 2}]}"
    )
    info = RunInfo.read(tmp_path)
    assert info.limits == Limits(points=7)
    assert info.experts == ({"name": "ocr", "frames": 2},) and Panel(info.experts).names == ["ocr"]
    (tmp_path / "recipe.yaml").write_text(head + "chat: {notice: '', max_tokens: 4, temperature: 0}")
    assert RunInfo.read(tmp_path).experts == ()


def test_the_command_line_goes_before_the_recipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    info = FakeRunInfo(experts=({"name": FAKE, "text": "recipe"},))
    monkeypatch.setattr(chats.run_info.RunInfo, "read", classmethod(lambda *_, **__: info))
    (tmp_path / "recipe.yaml").touch()
    monkeypatch.setattr(chats, "_one_answer", lambda talk, *_: seen.append(talk.experts) or 0)
    seen: list[Panel] = []
    registry.allow([FAKE])
    line = {"experts": [f"{FAKE}:text=line"]}
    for options in ({"experts_of_run": True}, {"experts_of_run": True, **line}, line, {}, {"no_experts": True}):
        chats.command(chats.Options(words=[str(tmp_path), "what?"], **options))
    texts = [[runner.config.text for runner in panel._runners.values()] for panel in seen]
    assert texts == [["recipe"], ["line"], ["line"], [], []]
    assert [mmtune.chat(tmp_path, experts=named).experts.names for named in ("of_run", ["ocr"], ())] == [
        [FAKE], ["ocr"], []
    ]  # fmt: skip
    for panel in seen:
        panel.close()


def test_experts_are_changed_in_a_conversation(capsys: pytest.CaptureFixture[str], panel: Panel) -> None:
    repl = Repl(FakeRunInfo(), [SIGN], None, Settings(), experts=panel)  # type: ignore[arg-type]

    def typed(line: str) -> str:
        repl._take(line)
        return capsys.readouterr().err

    listed = typed("/expert")
    assert f"on: {FAKE}; there are " in listed and "ocr" in listed
    assert f'(expert {FAKE}, sign.png: "EXIT"' in typed("what?")
    assert "[Fake: EXIT]" in typed("/show")
    assert "is off" in typed(f"/expert {FAKE} off") and "on: none" in typed("/expert")
    assert "(ocr is on)" in typed("/expert ocr:frames=2") and "(ocr is on)" in typed("/expert ocr on")
    with pytest.raises(UsageError, match="/expert ocr of"):
        typed("/expert ocr of")
    with pytest.raises(UsageError, match="is not on"):
        typed("/expert caption off")
    with pytest.raises(ConfigError, match="'orc'"):
        typed("/expert orc")
    assert "on: ocr" in typed("/expert")


# ------------------------------------------------------------------------------------------------ the command


def _chat(*words: str, cache: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "MMTUNE_CACHE": str(cache), "MMTUNE_HISTORY": "", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.serve.drive", "{}", "chat", *words]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment, input=stdin, check=False
    )


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """An image by its first bytes; the fake expert does not decode it and does as an unknown word says: it fails."""
    path = tmp_path / "sign.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n")
    return str(path)


def test_the_command_says_what_failed_and_answers(picture: str, tmp_path: Path) -> None:
    done = _chat("--image", picture, "--expert", FAKE, "what?", cache=tmp_path / "cache")
    assert (done.returncode, done.stdout) == (0, "a red circle\n"), done.stderr
    [line] = [line for line in done.stderr.splitlines() if "expert" in line]
    assert "AttributeError" in line and "going on without it" in line and "Traceback" not in done.stderr


def test_the_command_refuses_names_before_anything_slow(picture: str, tmp_path: Path) -> None:
    for spec, message in (("orc", "experts has no 'orc'"), ("ocr:fames=1", "unknown key")):
        done = _chat("--image", picture, "--expert", spec, "what?", cache=tmp_path)
        assert done.returncode == 2 and done.stdout == "" and message in done.stderr


def test_json_tells_of_experts(picture: str, tmp_path: Path) -> None:
    done = _chat("--image", picture, "--expert", FAKE, "what?", "--json", cache=tmp_path)
    [expert] = json.loads(done.stdout)["experts"]
    assert expert["expert"] == FAKE and expert["status"] == "failed" and expert["origin"] == picture
