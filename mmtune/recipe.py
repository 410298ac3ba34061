"""A recipe: everything that a run is made of, and nothing that only this machine knows.

Sections are flat and typed; the remark under a field is its help text and its description in the JSON schema. What two
fields say together is checked here, and all such mistakes are reported at once. A recipe that has been validated is
resolved: kinds of media, formats of data and the prompt of the chat are written out, so it means the same wherever it
is stored.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from mmtune import config, other_models, registry
from mmtune.config import Config, Words, entry
from mmtune.errors import ConfigError, MmtuneError
from mmtune.media import Limits
from mmtune.params import Gradient, GradientSection, ParameterGroup, SchedulerType
from mmtune.types import Kind

NAME = r"[a-z][a-z0-9_]*"
Name = Annotated[str, Field(pattern=rf"^{NAME}$", max_length=40)]
"""Of a branch, a stream or a group. It becomes part of parameter names and a file name."""


EncoderEntry = entry("encoders")
ConnectorEntry = entry("connectors")
LLMEntry = entry("llm")
FusionEntry = entry("fusion")
TunerEntry = entry("tuners")
ObjectiveEntry, ExpertEntry, FormatEntry, OrderEntry, TaskEntry = (
    entry(room, short=True) for room in ("objectives", "experts", "data/formats", "data/orders", "eval/tasks")
)

# ------------------------------------------------------------------------------------------------------------- model


class BranchSection(Config):
    """One way into the language model: an encoder and the connector after it."""

    encoder: EncoderEntry
    """Media to features."""
    connector: ConnectorEntry
    """Features to embeddings."""
    kinds: tuple[Kind, ...] | None = None
    """Kinds of media that go this way; all that the encoder takes when not given."""

    @field_validator("kinds")
    @classmethod
    def _of_the_encoder(cls, kinds: tuple[Kind, ...] | None, info: ValidationInfo) -> tuple[Kind, ...] | None:
        encoder = info.data.get("encoder")
        if encoder is None or isinstance(encoder, config.Outside):  # known when it may be imported
            return kinds
        takes = tuple(registry.find("encoders", encoder.name).kinds)
        kinds = takes if kinds is None else kinds
        strange = ", ".join(kind for kind in kinds if kind not in takes)
        if strange or not kinds:
            what = f"{strange or 'no kind'} for encoder {encoder.name}"
            raise config.cross_field(f"{what}, which takes {', '.join(takes)}")
        return kinds


class ModelSection(Config):
    """The parts of the model."""

    branches: dict[Name, BranchSection] = {}
    """Name to branch; each kind of media goes to one branch only."""
    llm: LLMEntry
    """The language model."""
    fusion: FusionEntry
    """How media enter the language model."""
    tuners: tuple[TunerEntry, ...] = ()
    """Changes to the language model, applied in order."""
    freeze: Words = ()
    """Globs over full parameter names that stay frozen although no other setting freezes them, such as a connector. A
    group that claims one of them is refused."""


# -------------------------------------------------------------------------------------------------------------- data


class Card(Config):
    """A dataset: where it comes from, how its records are spelled, what it should hold."""

    title: str
    """What it is called where it comes from."""
    source: str
    """Where to get it: an address."""
    licence: str
    """Of the data, and of the media where that is another."""
    format: FormatEntry
    """How a record becomes a conversation."""
    shards: Words
    """Patterns of its shards, relative to the folder MMTUNE_DATA, or else to the current one."""
    samples: int | None = None
    """Number of usable samples, if known."""
    sha256: dict[str, str] = {}
    """File name to checksum, for files whose contents are fixed."""
    about: str = ""
    """What a user ought to know."""

    def patterns(self) -> tuple[str, ...]:
        """The patterns of the shards as this machine finds them; addresses and absolute paths stay as they are."""
        folder = os.environ.get("MMTUNE_DATA", "")
        return tuple(one if "://" in one else os.path.join(folder, one) for one in self.shards)


class StreamSection(Config):
    """Data that is trained on in steps of its own."""

    data: Annotated[Words, Field(min_length=1)]
    """Names of dataset cards, or patterns of shards (with a slash or a dot)."""
    prompt: str
    """Name or path of the prompt template."""
    share: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Part of the steps, relative to the other streams."""
    format: FormatEntry | None = None
    """How a record becomes a conversation; read from the cards when not given."""
    objective: ObjectiveEntry = Field(default={"name": "cross_entropy"})
    """What is asked of the model; a name, or a name with options."""
    order: OrderEntry = Field(default={"name": "shuffle"})
    """In which order samples come; a name, or a name with options."""

    @field_validator("data")
    @classmethod
    def _has_its_cards(cls, data: tuple[str, ...]) -> tuple[str, ...]:
        faults = []
        for name in filter(is_card, data):
            try:
                _card(name)
            except MmtuneError as error:
                faults += str(error).splitlines()
        if faults:
            raise config.cross_field("; ".join(faults))
        return data

    @field_validator("format")
    @classmethod
    def _of_the_cards(cls, given: Config | None, info: ValidationInfo) -> Config | None:
        if given is not None or "data" not in info.data:
            return given
        bare = next((name for name in info.data["data"] if not is_card(name)), None)
        if bare is None and (found := _one_format(map(_card, info.data["data"]))):
            return found
        why = f"{bare} has no card" if bare else "the cards do not agree"
        raise config.cross_field(f"missing, and {why}; one of {', '.join(registry.names('data/formats'))}")

    def patterns(self) -> tuple[str, ...]:
        """The patterns of all shards, those of cards included."""
        found: list[str] = []
        for name in self.data:
            found += _card(name).patterns() if is_card(name) else [name]
        return tuple(found)


def _card(name: str) -> Card:
    return config.load(Card, name, builtin="cards")


def _one_format(owners: Iterable[Card | StreamSection]) -> Config | None:
    """The format of all of them, none where they differ."""
    spelled = {config.dump(owner.format): owner.format for owner in owners}
    return spelled.popitem()[1] if len(spelled) == 1 else None


def is_card(text: str) -> bool:
    """Whether an item of `data` is the name of a card rather than a pattern of shards."""
    return re.fullmatch(NAME, text) is not None


# ---------------------------------------------------------------------------------------------------------- the rest


class StageSection(Config):
    """Some steps of some streams, one stage after another."""

    streams: Annotated[Words, Field(min_length=1)]
    """Streams that take turns in it, by share."""
    steps: Annotated[int, Field(ge=1)]
    """Optimizer steps of the stage."""


class ScheduleSection(Config):
    """How long, whose turn it is, and how the learning rate moves.

    The rate of a group counts the steps that train the group, and no others: with two streams in turn it rises over
    `warmup` steps of its own stream.
    """

    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps in all, over all streams; 1000 where neither they nor epochs are given."""
    epochs: Annotated[float, Field(gt=0, le=10000)] | None = None
    """Passes over the data in place of steps: the run takes as many samples as all streams hold, times this. How many
    steps that is, is settled from the data when the run begins, and said."""
    interleave: Literal["share", "alternate", "stage", "mixed"] = "share"
    """share: a step is of one stream, by their shares. alternate: the same with equal shares. stage: one stage after
    another. mixed: micro-steps of one step are of different streams, by share; each moves its own groups only."""
    stages: tuple[StageSection, ...] = ()
    """The stages, where `interleave` is stage; their steps add up to `steps`."""
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of a group over which its learning rate rises from zero."""
    lr_schedule: SchedulerType = "cosine"
    """How it falls after that. half_cosine: a cosine that counts from zero, as LLaMA-Adapter's loop does."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What it falls to, as a part of the peak."""

    @model_validator(mode="before")
    @classmethod
    def _usual(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("steps") is None and tree.get("epochs") is None:
            return {**tree, "steps": 1000}
        return tree


class RunSection(Config):
    """How a run is carried out."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of weights, data order and everything random."""
    length: Annotated[int, Field(ge=8, le=2**24)] = 1024
    """Most tokens of an example, media tokens included."""
    too_long: Literal["drop", "turns", "cut", "error"] = "turns"
    """A longer one is skipped and counted, loses whole exchanges until it fits, its end, or stops the run."""
    batch_tokens: Annotated[int, Field(ge=8, le=2**28)] = 4096
    """Most token positions of one micro-step, all rows together, padding included."""
    accumulate: Annotated[int, Field(ge=1, le=2**20)] = 1
    """Micro-steps in a step."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of frozen weights and of the arithmetic; what trains is kept in fp32."""
    max_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest norm of the gradient of a group; 0 turns clipping off."""
    gradient: Gradient = GradientSection(name="backward")
    """backward: a backward pass. two_point: the slope of the loss along random directions, by forward passes alone
    (zeroth order, MeZO): nothing is kept for a backward pass, and many more steps are needed. A name, or a name with
    options."""
    out_of_memory: Literal["stop", "smaller"] = "stop"
    """When a micro-step does not fit: stop, or do the step again in smaller pieces, the same but for rounding."""
    activation_checkpointing: bool = False
    """Keep only the input of every layer of the language model for the backward pass, and compute the rest again: less
    memory, about a third more time, the same gradients."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """auto, cpu, mps, cuda or cuda:N."""
    strategy: Literal["replicate", "shard", "shard_all"] = "replicate"
    """What each process of a run holds: the whole model; its part of the frozen layers of the language model; its part
    of what trains in them too, with gradients and optimizers. One process alone holds everything."""
    offload: bool = False
    """Keep what is cut in the main memory, and bring it to the device layer by layer. Slow; for `shard` only."""
    compile: bool = False
    """Compile the layers of the language model: the first steps take minutes, later ones may be faster."""
    deadline: Annotated[float, Field(ge=2)] = 600.0
    """Seconds that a process may hold up the others before the run stops and names it."""
    workers: Annotated[int, Field(ge=0, le=256)] = 2
    """Processes that prepare data, per rank; 0 prepares in the process that trains."""
    save_every: Annotated[int, Field(ge=0)] = 500
    """Steps between states to resume from; 0 saves at the end only."""
    keep: Annotated[int, Field(ge=1)] = 2
    """States kept."""
    failed_save: Literal["stop", "go_on"] = "stop"
    """What a save that could not be written does: stop the run, or warn, count it and try again at the next one."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    """What gets the numbers beside metrics.jsonl: TensorBoard, Weights & Biases (`pip install 'mmtune[wandb]'`)."""
    feature_cache: str | None = None
    """Folder in which features of frozen encoders are kept; none encodes again each time. Encoders that draw crops,
    views or frames at random are asked each time all the same."""
    stop_after_minutes: Annotated[float, Field(gt=0)] | None = None
    """Save and stop in good order after this much wall clock, minutes; none never does."""
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Most samples that may be unusable, as a part of all seen, before the run stops."""
    max_bad_in_a_row: Annotated[int, Field(ge=1)] = 100
    """Most unusable samples one after the other."""
    init_from: str | None = None
    """Run folder whose trained weights this one begins with: an imported checkpoint, or an earlier stage. Parts that
    only this recipe has begin as they otherwise would."""
    out: str | None = None
    """Folder of the run; usually given on the command line."""


class HeldOutSection(Config):
    """Data that is never trained on, read as a stream reads its own."""

    data: Annotated[Words, Field(min_length=1)]
    """Names of dataset cards, or patterns of shards."""
    like: Name | None = None
    """Stream whose prompt, format and objective it has; the one of its own name when not given."""
    format: FormatEntry | None = None
    """How a record becomes a conversation, where that is not as in the stream."""


def _short_held_out(value: Any) -> Any:
    """Patterns alone for `{data: patterns}`."""
    return {"data": value} if isinstance(value, (str, list, tuple)) else value


HeldOut = Annotated[HeldOutSection, BeforeValidator(_short_held_out)]


class EvalSection(Config):
    """What the model is measured by, while it trains and afterwards."""

    every: Annotated[int, Field(ge=0)] = 0
    """Steps between validations while training, the last step included; 0 never validates."""
    streams: dict[Name, HeldOut] = {}
    """Name to held-out data, whose loss is taken; patterns alone are of the stream of that name."""
    fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Part of the samples of every other stream that is held out, chosen by a hash of their names."""
    limit: Annotated[int, Field(ge=1)] = 512
    """Most samples of each held-out stream, and most records of the task, in one validation."""
    task: TaskEntry | None = None
    """Questions that `mmtune eval` asks, and validations where `data` is given; a name, or a name with options."""
    data: Words = ()
    """Patterns of the task's shards."""
    best: str | None = None
    """What the best state is chosen by: `loss`, `NAME/loss` of a held-out stream, or `TASK/MEASURE`; the loss when not
    given, or the first measure of the task where there is no loss. The best state is kept in the folder `best`."""


class ChatSection(Config):
    """How the finished model talks."""

    prompt: str | None = None
    """Name or path of the prompt template; the one of the streams when they all use the same."""
    max_tokens: Annotated[int, Field(ge=1)] = 256
    """Longest answer, tokens."""
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    """0 always takes the likeliest token."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draw from the likeliest tokens that together reach this probability."""
    notice: str = ""
    """What the model is and what it cannot do, said when a chat begins."""
    experts: tuple[ExpertEntry, ...] = ()
    """Who else looks at the media and tells the model what is found, such as `ocr`; a name, or a name with options."""


class Recipe(Config):
    """A run, from parts to talk."""

    title: str = ""
    """One line for people."""
    model: ModelSection
    """The parts of the model."""
    streams: dict[Name, StreamSection] = {}
    """Name to data."""
    groups: dict[Name, ParameterGroup] = {}
    """Name to the parameters that train together."""
    models: dict[Name, other_models.OtherModel] = {}
    """Name to another model that objectives ask, such as a teacher; it is not trained."""
    schedule: ScheduleSection = ScheduleSection()
    """How long, and how the learning rate moves."""
    run: RunSection = RunSection()
    """How the run is carried out."""
    limits: Limits = Limits()
    """The most that one item of media may cost; what is beyond is skipped and counted."""
    eval: EvalSection = EvalSection()
    """What the model is measured by."""
    chat: ChatSection = ChatSection()
    """How the finished model talks."""

    @field_validator("eval")
    @classmethod
    def _reads_as_the_run(cls, section: EvalSection, info: ValidationInfo) -> EvalSection:
        task, found = section.task, _one_format(info.data.get("streams", {}).values())
        if task is None or found is None or "format" not in type(task).model_fields.keys() - task.model_fields_set:
            return section
        return section.model_copy(update={"task": task.model_copy(update={"format": found})})

    @field_validator("chat")
    @classmethod
    def _talks_as_the_streams(cls, section: ChatSection, info: ValidationInfo) -> ChatSection:
        prompts = {stream.prompt for stream in info.data.get("streams", {}).values()}
        settled = section.prompt is not None or len(prompts) != 1
        return section if settled else section.model_copy(update={"prompt": prompts.pop()})

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        checks = (_branches, _groups, _interleave, _numbers, _eval, _prompts, other_models.problems)
        config.raise_problems("Recipe", [problem for check in checks for problem in check(self)])
        return self


def require_training(recipe: Recipe) -> None:
    """Raise ConfigError where a recipe builds a model but does not say what trains it: no streams, or no groups."""
    missing = [name for name in ("streams", "groups") if not getattr(recipe, name)]
    if missing:
        raise ConfigError(
            f"the recipe has no {' and no '.join(missing)}, so there is nothing to train",
            "\n".join(f"{name}: {_SECTIONS[name]}" for name in missing),
            "mmtune init, which writes a whole recipe from a few answers",
        )


_SECTIONS = {
    "streams": '{own: {data: ["shards/*.tar"], format: llava, prompt: PROMPT}}, the data',
    "groups": '{connector: {match: ["branches.*.connector.*"], lr: 1.0e-3}}, what trains and how fast',
}
"""A small example of each section that training needs."""


def with_code(recipe: Recipe) -> Recipe:
    """A recipe that may be built: what model, streams and groups name outside mmtune is allowed, its options checked.

    Raises ConfigError that names all that is not allowed.
    """
    tree = recipe.model_dump(mode="json")
    registry.refuse(registry.needs_word([tree["model"], tree["streams"], tree["groups"]]))
    return config.validate(Recipe, tree) if registry.allowances() else recipe


# ------------------------------------------------------------------------------------- checks over several sections

Problems = list[dict[str, Any]]


def _branches(recipe: Recipe) -> Problems:
    claimed = Counter(kind for branch in recipe.model.branches.values() for kind in branch.kinds or ())
    problems = []
    for kind in (kind for kind, times in claimed.items() if times > 1):
        names = " and ".join(name for name, branch in recipe.model.branches.items() if kind in (branch.kinds or ()))
        message = f"{kind} goes to {names}; say `kinds` of each, one branch a kind"
        problems.append(config.problem("model.branches", message))
    return problems


def _groups(recipe: Recipe) -> Problems:
    problems = []
    tuners = [tuner.name for tuner in recipe.model.tuners]
    for name, group in recipe.groups.items():
        for stream in group.streams:
            if stream not in recipe.streams:
                problems.append(
                    config.problem(f"groups.{name}.streams", f"no stream {stream}; {_known(stream, recipe.streams)}")
                )
        for pattern in group.match:
            head, _, rest = pattern.partition(".")
            branch = rest.partition(".")[0]
            if pattern.startswith("@") and pattern[1:] not in tuners:
                problems.append(
                    config.problem(f"groups.{name}.match", f"no tuner {pattern}; {_known(pattern[1:], tuners)}")
                )
            elif head == "branches" and re.fullmatch(NAME, branch) and branch not in recipe.model.branches:
                message = f"{pattern}: no branch {branch}; {_known(branch, recipe.model.branches)}"
                problems.append(config.problem(f"groups.{name}.match", message))
    for name in recipe.streams:
        if not any(not group.streams or name in group.streams for group in recipe.groups.values()):
            named = "name it under `streams` of one"
            how = named if recipe.groups else f"there are none; groups: {_SECTIONS['groups']}"
            problems.append(config.problem(f"streams.{name}", f"trains no group; {how}"))
    if recipe.groups and not recipe.streams:
        problems.append(config.problem("streams", "none, so the groups would never train"))
    return problems


def _interleave(recipe: Recipe) -> Problems:
    schedule, problems = recipe.schedule, []
    if (schedule.interleave == "stage") != bool(schedule.stages):
        problems.append(
            config.problem("schedule.stages", f"{len(schedule.stages)}, with interleave: {schedule.interleave}")
        )
    named = {stream for stage in schedule.stages for stream in stage.streams}
    for stream in sorted(named - set(recipe.streams)):
        problems.append(config.problem("schedule.stages", f"no stream {stream}; {_known(stream, recipe.streams)}"))
    for stream in recipe.streams if schedule.stages else ():
        if stream not in named:
            problems.append(config.problem(f"streams.{stream}", "in no stage; name it under `schedule.stages`"))
    if schedule.stages and schedule.epochs is not None:
        problems.append(config.problem("schedule.epochs", "stages say how many steps they have"))
    elif schedule.stages and (total := sum(stage.steps for stage in schedule.stages)) != schedule.steps:
        problems.append(config.problem("schedule.steps", f"{schedule.steps}, but the stages have {total}"))
    shares = {name: stream.share for name, stream in recipe.streams.items()}
    if schedule.interleave == "alternate" and len(set(shares.values())) > 1:
        problems.append(config.problem("schedule.interleave", f"alternate takes no shares; use `share` for {shares}"))
    if schedule.interleave == "mixed" and recipe.run.accumulate < 2 <= len(shares):
        problems.append(
            config.problem("run.accumulate", "1, but a mixed step needs a micro-step for each of several streams")
        )
    return problems


def _numbers(recipe: Recipe) -> Problems:
    run, schedule = recipe.run, recipe.schedule
    problems = []
    if (schedule.steps is None) == (schedule.epochs is None):
        both = f"{schedule.steps} beside schedule.epochs = {schedule.epochs}; take one out, as schedule.steps=null"
        problems.append(config.problem("schedule.steps", both))
    if schedule.steps is not None and schedule.warmup > schedule.steps:
        problems.append(config.problem("schedule.warmup", f"{schedule.warmup} of {schedule.steps} steps"))
    if run.batch_tokens < run.length:
        message = f"{run.batch_tokens} holds no example of run.length = {run.length}"
        problems.append(config.problem("run.batch_tokens", message))
    return problems


def _eval(recipe: Recipe) -> Problems:
    section, problems = recipe.eval, []
    for name, held in section.streams.items():
        if (like := held.like or name) not in recipe.streams:
            path = f"eval.streams.{name}" + (".like" if held.like else "")
            problems.append(config.problem(path, f"no stream {like}; {_known(like, recipe.streams)}; say `like`"))
    if section.fraction and not set(recipe.streams) - set(section.streams):
        problems.append(config.problem("eval.fraction", "every stream has held-out data of its own"))
    if section.every and not (section.streams or section.fraction or (section.task and section.data)):
        what = "nothing is held out: give eval.streams, eval.fraction, or eval.task with eval.data"
        problems.append(config.problem("eval.every", what))
    if section.task is not None and section.task.name in {*section.streams, *recipe.streams}:
        problems.append(config.problem("eval.task", f"{section.task.name} is the name of a stream, too"))
    return problems


def _prompts(recipe: Recipe) -> Problems:
    named = {f"streams.{name}.prompt": stream.prompt for name, stream in recipe.streams.items()}
    if recipe.chat.prompt not in (None, *named.values()):
        named["chat.prompt"] = recipe.chat.prompt
    problems = []
    if recipe.chat.prompt is None:
        why = "the streams do not settle it" if named else "no streams settle it; `mmtune init` writes a whole recipe"
        problems.append(config.problem("chat.prompt", f"missing; {why}"))
    known = list(registry.shipped("prompts"))
    files = {prompt: prompt.replace("\\", "/").rpartition("/")[2] for prompt in named.values()}
    for path, prompt in named.items():
        if twin := next((other for other in files if other != prompt and files[other] == files[prompt]), None):
            # a run keeps a copy of each by its file name
            problems.append(config.problem(path, f"{prompt} and {twin} have the same file name; rename one"))
        # A path may point at a file of the machine that trained; only a command that uses it has to find it.
        if re.fullmatch(r"[\w-]+", prompt) and prompt not in known:
            problems.append(config.problem(path, f"no prompt {prompt}; {_known(prompt, known, 'prompts')}"))
    return problems


def _known(name: str, known: Iterable[str], room: str | None = None) -> str:
    listed = registry.suggest(name, known, room) if room else ", ".join(registry.nearest(name, list(known)))
    return f"known: {listed or 'none'}"
