"""`mmtune init`: a whole recipe that trains, from flags or from answers at a terminal."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmtune import config
from mmtune.cli import app, init_recipe
from mmtune.commands.init import text
from mmtune.data import build, peek
from mmtune.errors import ConfigError, DataError, MmtuneError, UsageError
from mmtune.recipe import EvalSection, Recipe, require_training
from tests.data import tars
from tests.encoders import tiny as encoders
from tests.llm import tiny as llms
from tests.media import make


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


TALK = [{"from": "human", "value": "<video>\nWhat is this?"}, {"from": "gpt", "value": "A film."}]


def called(*words: str, answers: str | None = None) -> str:
    done = CliRunner().invoke(app, [*words], input=answers)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def init(*words: str) -> Recipe:
    """The recipe that the command writes, as read back from its file."""
    called("init", *words, "--out", "made.yaml")
    return config.load(Recipe, "./made.yaml")


def captions(folder: Path, kind: str = "mp4", count: int = 4) -> Path:
    content = make.video(count=8, rate=4) if kind == "mp4" else make.wav(make.sine(16000, 0.5))
    rows = [(f"{n:03d}.{kind}", content) for n in range(count)]
    texts = [(f"{n:03d}.txt", f"a red circle {n}".encode()) for n in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    return tars.write(folder / "0.tar", [one for pair in zip(rows, texts, strict=True) for one in pair])


POCKET = ("--llm", "pocket", "--encoder", "pocket")


@pytest.mark.parametrize(
    ("method", "trains"),
    [
        ("connector", {"connector"}),
        ("lora", {"connector", "lora"}),
        ("full", {"connector", "llm"}),
        ("adapter_v2", {"sight", "speech"}),
    ],
)
def test_every_method_writes_a_recipe_that_trains(method: str, trains: set[str], here: Path) -> None:
    tars.shards(here / "shards", count=1, size=3)
    recipe = init("--data", "shards/*.tar", *POCKET, "--method", method)
    require_training(recipe)
    assert set(recipe.groups) == trains
    assert recipe.streams["instruct"].format.name == "llava" and recipe.chat.prompt == "pocket"
    assert recipe.model.branches["sight"].kinds == ("image",), "of the data, not of all that the encoder takes"
    assert recipe.schedule.epochs == 500, "three samples, and some hundred steps to learn anything"
    quick = ["schedule.epochs=null", "schedule.steps=1", "schedule.warmup=0", "run.workers=0"]
    called("train", "./made.yaml", *quick, "--out", "run")
    assert (here / "run" / "weights").is_dir()


def test_lengths_fit_the_data_and_some_is_held_out(here: Path) -> None:
    tars.shards(here / "shards", count=1, size=60, more=lambda key: {})
    recipe = init("--data", "shards/*.tar", *POCKET, "--method", "full")
    assert recipe.run.length == 256 and recipe.run.batch_tokens == 8 * 256
    assert recipe.eval.fraction == 0.05 and recipe.eval.every == 100
    assert 1 < recipe.schedule.epochs < 500, "some hundred steps"


def test_a_set_that_is_not_seen_whole_has_one_pass(here: Path) -> None:
    tars.shards(here / "shards", count=1, size=peek.RECORDS + 1)
    recipe = init("--data", "shards", *POCKET)
    assert recipe.schedule.epochs == 1 and recipe.streams["instruct"].data == ("./shards",)


def test_a_mixture_is_seen_in_whatever_shard_it_lies(here: Path) -> None:
    tars.shards(here / "shards", count=6, size=peek.RECORDS + 1)
    facts = json.dumps({"video": "z.mp4", "conversations": TALK}).encode()
    film = [("z.json", facts), ("z.mp4", make.video(count=8, rate=4))]
    tars.write(here / "shards" / "00009.tar", film)
    recipe = init("--data", "shards", *POCKET)
    assert {kind for branch in recipe.model.branches.values() for kind in branch.kinds or ()} == {"image", "video"}
    talks = [one for number in range(20) for one in tars.talk(f"{number:02d}")]
    tars.write(here / "one.tar", [*talks, *film])
    said = called("init", "--data", "one.tar", *POCKET, "--out", "b.yaml")
    found = re.search(r"samples have up to (\d+) tokens", said)
    assert found and int(found[1]) > 70, "of the film, which stands behind twenty pictures"


def test_names_with_dots_are_samples_of_their_own(here: Path) -> None:
    tars.write(here / "a.tar", [one for name in ("a.1", "a.2", "b", "c.1.x") for one in tars.talk(name)])
    seen = peek.look(["a.tar"])
    assert (seen.records, len(seen.samples), seen.whole) == (4, 4, True)


def test_a_packed_shard_is_told_what_it_is(here: Path) -> None:
    (shard,) = tars.shards(here, count=1, size=2)
    shard.write_bytes(gzip.compress(shard.read_bytes()))
    with pytest.raises(DataError, match="compressed"):
        peek.look([str(shard)])


def test_captions_and_conversations_get_streams_of_their_own(here: Path) -> None:
    captions(here / "clips")
    tars.shards(here / "talks", count=1, size=3)
    recipe = init("--data", "clips/*.tar", "--data", "talks/*.tar", *POCKET, "--method", "adapter_v2", "--epochs", "2")
    assert recipe.streams["caption"].format.prompts == (), "pictures and videos share no wording"
    assert {name: group.streams for name, group in recipe.groups.items()} == {
        "sight": ("caption",),
        "speech": ("instruct",),
    }
    assert recipe.schedule.epochs == 2


def test_pairs_of_answers_are_told_to_begin_with_a_run_that_answers(here: Path) -> None:
    pair = {"image": "1.png", "question": "What?", "chosen": "A cat.", "rejected": "Two dogs."}
    (here / "pairs").mkdir()
    tars.write(here / "pairs" / "0.tar", [("1.json", json.dumps(pair).encode()), ("1.png", tars.PNG)])
    said = called("init", "--data", "pairs/*.tar", *POCKET, "--method", "connector", "--out", "made.yaml")
    assert "run.init_from=FOLDER" in said and config.load(Recipe, "./made.yaml").streams["preference"].objective
    tars.shards(here / "talks", count=1, size=3)
    assert "init_from" not in called("init", "--data", "talks/*.tar", *POCKET, "--method", "lora", "--out", "b.yaml")


def test_a_pool_by_name_is_the_published_one_and_can_leave(here: Path) -> None:
    """A video recipe of the small parts, trained for a step, has a place in PLLaVA's layout."""
    captions(here / "clips")
    recipe = init("--data", "clips/*.tar", *POCKET, "--method", "lora", "--connector", "pool")
    assert recipe.model.branches["sight"].connector.short == "repeat"
    assert recipe.run.feature_cache == "runs/features"
    quick = ["schedule.epochs=null", "schedule.steps=1", "schedule.warmup=0", "run.workers=0"]
    called("train", "./made.yaml", *quick, "--out", "run")
    said = called("export", "run", "--layout", "pllava", "--out", "out")
    assert "compared with the run" in said and (here / "out" / "model.safetensors").is_file()
    assert "it is lora_alpha = 32" in said, "whoever reads the layout has to know it"


def test_a_tuned_model_of_pictures_behind_mlp_can_leave(here: Path) -> None:
    tars.shards(here / "shards", count=1, size=3)
    init("--data", "shards/*.tar", *POCKET, "--method", "full", "--connector", "mlp")
    quick = ["schedule.epochs=null", "schedule.steps=1", "schedule.warmup=0", "run.workers=0"]
    called("train", "./made.yaml", *quick, "--out", "run")
    assert "compared with the run" in called("export", "run", "--layout", "llava_hf", "--out", "out")


def test_a_run_without_a_layout_is_told_which_part_stands_in_the_way(here: Path) -> None:
    tars.shards(here / "shards", count=1, size=3)
    init("--data", "shards/*.tar", *POCKET)
    called("train", "./made.yaml", "schedule.epochs=null", "schedule.steps=1", "schedule.warmup=0", "--out", "run")
    with pytest.raises(MmtuneError) as caught:
        called("export", "run", "--layout", "pllava", "--out", "out")
    assert "tuners (none)" in caught.value.seen
    assert "norm: true, bins: true, out_norm: true, match_scale: true, hidden: 256" in caught.value.seen
    assert "--method lora --connector pool" in str(caught.value.hint)
    with pytest.raises(UsageError, match="without --layout") as caught:
        called("export", "run", "--out", "out")
    assert "llava_hf, p2p, pllava" in caught.value.expected and " llm," not in caught.value.expected
    assert not (here / "out").exists()


def test_of_few_samples_some_are_held_out_when_asked(here: Path) -> None:
    """Which ones, a hash of their names says; of five it would say none for many a fraction."""
    captions(here / "clips", count=5)
    for part in ("0.02", "0.2", "0.9"):
        recipe = init("--data", "clips/*.tar", *POCKET, "--hold-out", part)
        (held,) = build.held_out_of(recipe, {"caption": None})  # type: ignore[dict-item]
        (rest,) = build.streams_of(recipe, {"caption": None})  # type: ignore[dict-item]
        assert len(held.corpus) >= 1 and len(rest.corpus) >= 1 and len(held.corpus) + len(rest.corpus) == 5
        (here / "made.yaml").unlink()
    with pytest.raises(ConfigError, match=r"eval\.fraction = 1e-06 holds out none of the samples in 1 shard") as caught:
        build.held_out_of(recipe.model_copy(update={"eval": EvalSection(fraction=1e-6)}), {"caption": None})  # type: ignore[dict-item]
    assert "larger eval.fraction" in str(caught.value.hint)
    captions(here / "one", count=1)
    with pytest.raises(UsageError, match="a stream has 1 of the samples"):
        init("--data", "one/*.tar", *POCKET, "--hold-out", "0.5")


def test_sounds_go_to_the_branch_that_hears(here: Path) -> None:
    captions(here / "sounds", "wav")
    recipe = init("--data", "sounds/*.tar", *POCKET)
    assert list(recipe.model.branches) == ["hearing"]
    assert recipe.streams["caption"].format.prompts == ("Describe the sound.",)


def test_local_folders_are_told_by_their_files(here: Path) -> None:
    captions(here / "clips")
    folder = llms.folder(here / "chat", tokenizer=llms.byte_bpe(marks=("<|im_start|>", "<|im_end|>", "<|pad|>")))
    settings = {"chat_template": "{{ '<|im_start|>' + role }}", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    encoders.clip_folder(here / "open")
    encoders.hf_folder(here / "theirs")
    for name, entry in (("./open", "clip"), ("./theirs", "hf_vision")):
        (here / "made.yaml").unlink(missing_ok=True)
        recipe = init("--data", "clips/*.tar", "--llm", "./chat", "--encoder", name, "--connector", "mlp")
        sight = recipe.model.branches["sight"]
        assert (sight.encoder.name, sight.encoder.layer, sight.connector.name) == (entry, -2, "mlp")
        assert recipe.chat.prompt == "chatml" and recipe.run.precision == "bf16"


def test_names_on_the_hub_that_are_not_here(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    recipe = init(
        "--data", "llava_665k", "--kinds", "image", "--llm", "lmsys/vicuna-7b-v1.5", "--prompt", "vicuna",
        "--encoder", "openai/clip-vit-large-patch14", "--method", "lora",
    )  # fmt: skip
    assert recipe.model.llm.repo == "lmsys/vicuna-7b-v1.5"
    assert recipe.model.branches["sight"].encoder.name == "hf_vision"
    assert recipe.model.tuners[0].options["target_modules"] == "all-linear"
    assert "lora trains 39,976,960 parameters" in called("show", "./made.yaml")


def test_questions_at_a_terminal(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tars.shards(here / "shards", count=1, size=3)
    monkeypatch.setattr(init_recipe, "_is_terminal", lambda: True)
    said = called("init", answers="shards/*.tar\n\n\nlora\nmine.yaml\n")
    assert "What trains: connector, lora, full or adapter_v2 [connector]" in said
    recipe = config.load(Recipe, "./mine.yaml")
    assert recipe.model.tuners[0].method == "lora" and "mmtune train mine.yaml --out runs/mine" in said


def test_a_wrong_answer_is_asked_for_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tars.shards(here / "shards", count=1, size=3)
    (here / "there.yaml").write_text("mine")
    monkeypatch.setattr(init_recipe, "_is_terminal", lambda: True)
    llms.folder(here / "llama")
    answers = ("nowhere/*.tar", "shards/*.tar", "./llama", "vicunna", "plain", "some/tower", "pocket", "lorra", "lora")
    called("init", answers="\n".join((*answers, "there.yaml", "mine", "mine.yaml", "")))
    recipe = config.load(Recipe, "./mine.yaml")
    assert recipe.model.tuners[0].method == "lora" and recipe.chat.prompt == "plain"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "shards/*.tar"], "without --llm, and no terminal"),
        (["--data", "shards/*.tar", *POCKET, "--method", "lorra"], "--method lorra"),
        (["--data", "shards/*.tar", *POCKET, "--connector", "poool"], "no 'poool'"),
        (["--data", "shards/*.tar", *POCKET, "--prompt", "chatml"], "plain text to this tokenizer"),
        (["--data", "shards/*.tar", *POCKET, "--prompt", "chatmll"], "no prompt chatmll"),
        (["--data", "shards/*.tar", *POCKET, "--out", "mine"], "--out mine"),
        (["--data", "shards/*.tar", *POCKET, "--out", "there.yaml"], "there.yaml is there already"),
        (["--data", "shards/*.tar", "--llm", "some/model", "--encoder", "pocket"], "no --prompt"),
        (["--data", "shards/*.tar", "--llm", "pocket", "--encoder", "some/tower"], "not on this machine"),
        (["--data", "shards/*.tar", "--llm", "pocket", "--encoder", "hf_audio:x"], "data with image"),
        (["--data", "shards/*.tar", "--llm", "some/model", "--prompt", "plain"], "data with image, and no --encoder"),
        (["--data", "nowhere/*.tar", *POCKET], "nowhere"),
        (["--data", "webvid_2m", *POCKET], "cannot be looked at here"),
        (["--data", "webvid_2m", "--kinds", "smell", *POCKET], "--kinds smell"),
    ],
)
def test_what_cannot_be_used_is_told_and_nothing_is_written(words: list[str], message: str, here: Path) -> None:
    tars.shards(here / "shards", count=1, size=3)
    (here / "there.yaml").write_text("mine")
    with pytest.raises(MmtuneError) as caught:
        called("init", *words)
    assert message in str(caught.value) and caught.value.expected
    assert not (here / "recipe.yaml").exists() and (here / "there.yaml").read_text() == "mine"


def test_a_medium_that_does_not_decode_is_told(here: Path) -> None:
    broken = [(name, b"no picture" if name.endswith("png") else raw) for name, raw in tars.talk("b")]
    tars.write(here / "some.tar", [*tars.talk("a"), *broken])
    done = CliRunner().invoke(app, ["init", "--data", "some.tar", *POCKET])
    assert done.exit_code == 0 and "cannot be used: " in done.stderr and "b.png" in done.stderr
    tars.write(here / "none.tar", broken)
    with pytest.raises(MmtuneError):
        called("init", "--data", "none.tar", *POCKET, "--out", "none.yaml")
    assert not (here / "none.yaml").exists()


def test_every_setting_has_its_remark_once() -> None:
    tree = config.read("pocket_joint")
    written = text.written(tree)
    assert config.validate(Recipe, config.parse(written, "")) == config.load(Recipe, "pocket_joint")
    assert written.count("# dataset cards") == 0 and written.count("name or path of the prompt template") == 1


# ------------------------------------------------------------------------------------------------- looking at shards


def test_the_format_that_reads_most(here: Path) -> None:
    plain = {"instruction": "say red", "input": "", "output": "red"}
    tars.write(here / "a.tar", [*tars.talk("a"), *tars.talk("b"), ("c.json", json.dumps(plain).encode())])
    seen = peek.look(["a.tar"])
    assert (seen.format, seen.records, len(seen.samples), dict(seen.kinds)) == ("llava", 3, 2, {"image": 2})
    assert "c" in seen.refused and seen.whole
    tars.write(here / "b.tar", [("c.json", json.dumps(plain).encode()), ("d.xyz", b"")])
    assert peek.look(["b.tar"]).format == "alpaca"
    captions(here / "clips")
    assert peek.look(["clips"]).format == "caption"


def test_shards_in_which_nothing_can_be_read(here: Path) -> None:
    tars.write(here / "a.tar", [("a.json", b"{}"), ("a.png", tars.PNG)])
    with pytest.raises(DataError, match="1 records, none of which any format reads"):
        peek.look(["a.tar"])
    (here / "b.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DataError, match="0 records"):
        peek.look(["b.tar"])


# ---------------------------------------------------------------------------------- recipes that cannot be trained on


def test_a_recipe_without_streams_or_groups_is_told_what_to_add(here: Path) -> None:
    model = config.read("pocket")["model"]
    (here / "bare.yaml").write_text(config.dump({"model": model, "chat": {"prompt": "pocket"}}))
    with pytest.raises(ConfigError, match="no streams and no groups") as caught:
        called("train", "./bare.yaml", "--out", "run")
    assert "streams: {own: {data: " in caught.value.expected and "mmtune init" in caught.value.hint
    assert not (here / "run").exists()
    (here / "less.yaml").write_text(config.dump({"model": model}))
    with pytest.raises(ConfigError, match="no streams settle it; `mmtune init`"):
        called("train", "./less.yaml", "--out", "run")
    stream = {"data": ["shards/*.tar"], "format": "llava", "prompt": "pocket"}
    (here / "some.yaml").write_text(config.dump({"model": model, "streams": {"own": stream}}))
    with pytest.raises(ConfigError, match="trains no group; there are none; groups: "):
        called("train", "./some.yaml", "--out", "run")


def test_the_example_in_the_error_is_a_recipe(here: Path) -> None:
    from mmtune.recipe import _SECTIONS

    tree = {"model": config.read("pocket")["model"]}
    for name, example in _SECTIONS.items():
        tree[name] = config.parse(example[: example.rindex("}") + 1].replace("PROMPT", "pocket"), name)
    require_training(config.validate(Recipe, tree))
    with pytest.raises(UsageError):
        called("init", "--llm", "pocket")
