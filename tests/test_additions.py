"""Additions outside the package: one file each, no edit, held to the checks of its room by its author.

Each text below is all that somebody writes: the file goes into a folder of theirs, a recipe names the class, and
`mmtune.testing.check` says whether it keeps the contract.
"""

from __future__ import annotations

import importlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from mmtune import registry, testing
from mmtune.data.formats.base import Record

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Addition:
    """What is written, and how it is checked."""

    cls: str
    text: str
    options: dict[str, Any] | None = None
    lines: int = 35
    """Most lines of the file."""
    records: tuple[Record, ...] = ()


def record(facts: Any, **members: bytes) -> Record:
    return Record("s/1", {"json": json.dumps(facts).encode(), **members}, "1")


ADDITIONS = {
    "encoders": Addition("Patches", '''
        """Mean colours of a picture's quarters, mixed by weights that are drawn at random and without a seed."""
        import torch
        from torch import nn

        from mmtune.encoders.base import Encoder, EncoderConfig
        from mmtune.media import Sampling
        from mmtune.types import Features


        class Config(EncoderConfig):
            width: int = 8
            """Width of a token."""


        class Patches(Encoder):
            Config, kinds, grid, tokens_per_frame, max_frames = Config, ("image", "video"), (2, 2), 4, 4

            def __init__(self, config):
                super().__init__(config)
                self.width = config.width
                self.mix = nn.Linear(3, config.width)

            def sampling(self, kind):
                return Sampling(frames=self.max_frames)

            def prepare(self, media, rng=None):
                pooled = nn.functional.adaptive_avg_pool2d(media.data.float() / 255, 2)
                return pooled.flatten(2).transpose(1, 2)

            def forward(self, x, frames):
                return Features(self.mix(x) * frames[..., None, None], frames, self.grid)
        '''),
    "connectors": Addition("Mean", '''
        """One token for each real frame: the mean of its features, through one matrix."""
        from torch import nn

        from mmtune.connectors.base import Connector, ConnectorConfig
        from mmtune.types import Embeds


        class Mean(Connector):
            Config = ConnectorConfig

            def __init__(self, config, shape, llm_width):
                super().__init__(config, shape, llm_width)
                self.matrix = nn.Linear(shape.width, llm_width)

            def tokens_out(self, frames):
                return frames

            def forward(self, features):
                mean = features.tokens.to(self.matrix.weight.dtype).mean(2)
                return Embeds(self.matrix(mean), features.frame_mask)
        '''),
    "fusion": Addition("Summed", '''
        """The sum of an item's embeddings, added to every token of its own segment."""
        import torch
        from torch import nn

        from mmtune.fusion.base import Fusion, FusionConfig


        class Summed(Fusion):
            Config, uses_placeholders = FusionConfig, False

            def __init__(self, config, llm_width, depth, heads):
                super().__init__(config, llm_width, depth, heads)
                self.gate = nn.Parameter(torch.zeros(()))

            def forward(self, llm, batch, embeds, cache=None):
                x = llm.embed(batch.tokens)
                for branch in sorted(embeds):
                    sums = (embeds[branch].tokens * embeds[branch].mask[..., None]).sum(1)
                    for item, (row, segment) in enumerate(batch.slots[branch][:, :2].tolist()):
                        rows = torch.arange(len(x), device=x.device)[:, None]
                        own = (rows == row) & (batch.segments == segment)
                        x = x + (self.gate * own[..., None] * sums[item]).to(x.dtype)
                x = x + self.gate * 0
                plain = cache is not None and bool((batch.segments == 1).all())
                return llm.forward(x, batch.positions, None if plain else batch.segments, cache)
        '''),
    "llm": Addition("Means", '''
        """The mean of what stands before, through one matrix: no attention, and so no place for terms in it."""
        import torch
        from torch import nn

        from mmtune.llm._tokenizer import load
        from mmtune.llm.base import LLM, Cache, LLMConfig
        from mmtune.paths import resolve


        class Kept(Cache):
            x = segments = None

            def keep(self, rows):
                super().keep(rows)
                self.x, self.segments = self.x[rows], self.segments[rows]


        class Means(LLM):
            Config, new_cache = LLMConfig, Kept
            width, depth, heads, kv_heads, head_width, inner_width = 16, 1, 1, 1, 16, 16

            def __init__(self, config):
                super().__init__(config)
                self.tokenizer = load(resolve("mmtune:pocket/llm"))
                self.words, self.mix = nn.Embedding(self.tokenizer.vocabulary, 16), nn.Linear(16, 16)

            def load_weights(self):
                self.to_empty(device="cpu")
                for parameter in self.parameters():
                    nn.init.normal_(parameter)

            def embed(self, ids):
                return self.words(ids)

            def attention_modules(self):
                return []

            def layers(self):
                return [self.mix]

            def decoder(self):
                return self.mix

            def forward(self, x, positions, segments, cache=None, attention_terms=None, tap=None):
                segments = x.new_ones(x.shape[:2], dtype=torch.int32) if segments is None else segments
                seen, of = x, segments
                if cache is not None:
                    if cache.x is not None:
                        seen, of = torch.cat([cache.x, x], 1), torch.cat([cache.segments, segments], 1)
                    cache.x, cache.segments = seen, of
                ahead = torch.ones(seen.shape[1], seen.shape[1]).triu(1)[-x.shape[1] :].bool()
                allowed = ((segments[:, :, None] == of[:, None]) & ~ahead).float()
                return torch.tanh(x + self.mix(allowed / allowed.sum(-1, keepdim=True) @ seen))

            def head(self, hidden):
                return hidden @ self.words.weight.T
        ''', lines=60),
    "tuners": Addition("Gains", '''
        """A gain for each channel behind every attention, 1 at first."""
        import torch
        from torch import nn

        from mmtune.tuners.base import Tuner, TunerConfig


        class Gained(nn.Module):
            def __init__(self, inner, width):
                super().__init__()
                self.inner, self.gain = inner, nn.Parameter(torch.ones(width))

            def forward(self, x):
                return self.inner(x) * self.gain


        class Gains(Tuner):
            Config = TunerConfig

            def apply(self, llm):
                names = [name for name, _ in llm.named_modules() if name.endswith("o_proj")]
                for name in names:
                    parent, _, child = name.rpartition(".")
                    inner = getattr(llm.get_submodule(parent), child)
                    setattr(llm.get_submodule(parent), child, Gained(inner, inner.out_features))
                return [f"{name}.gain" for name in names]
        '''),
    "objectives": Addition("Squared", '''
        """The squared distance of hidden states from zero at labelled tokens."""
        from mmtune.objectives.base import Objective, ObjectiveConfig
        from mmtune.types import IGNORE


        class Squared(Objective):
            Config = ObjectiveConfig

            def counts(self, batch):
                return {"squared": int((batch.labels != IGNORE).sum())}

            def loss(self, model, batch):
                return {"squared": model(batch)[batch.labels != IGNORE].float().square().sum()}
        '''),
    "optimizers": Addition("Lion", '''
        """Lion: steps of the sign of a running mean of gradients (Chen et al. 2023)."""
        import torch

        from mmtune.optimizers.base import Optimizer, OptimizerConfig, decay_matrices, kept


        class Signs(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure=None):
                for group in self.param_groups:
                    for p in (p for p in group["params"] if p.grad is not None):
                        if not self.state[p]:
                            self.state[p]["mean"] = torch.zeros_like(p)
                        mean = self.state[p]["mean"]
                        p.mul_(1 - group["lr"] * group["weight_decay"])
                        p.sub_(group["lr"] * mean.lerp(p.grad, 0.1).sign())
                        mean.lerp_(p.grad, 0.01)


        class Lion(Optimizer):
            Config, elementwise = OptimizerConfig, True

            def build(self, named, lr, weight_decay, betas):
                return Signs(decay_matrices(named, weight_decay), {"lr": lr})

            def state_of(self, name, parameter):
                return kept(parameter, "mean")
        '''),
    "experts": Addition("Size", '''
        """How many bytes a medium has."""
        from mmtune.experts.base import Evidence, Expert, ExpertConfig


        class Size(Expert):
            Config, version = ExpertConfig, "1"

            def look(self, ref, question):
                yield Evidence(f"{len(ref.read())} bytes")
        '''),
    "data/formats": Addition("Pairs", '''
        """`{"ask": ..., "say": ...}`, which checks nothing of a record by itself."""
        import json

        from mmtune.data.formats.base import Format, FormatConfig
        from mmtune.types import Sample, Turn


        class Pairs(Format):
            Config = FormatConfig

            def sample(self, record):
                facts = json.loads(record.files["json"])
                return Sample(record.id, (Turn("user", (facts["ask"],)), Turn("assistant", (facts["say"],))))
        ''', records=(record({"ask": "how many", "say": "two"}),)),
    "data/orders": Addition("EasyFirst", '''
        """Easy samples first, by a number in their records."""
        from mmtune.data.orders.base import Order, OrderConfig


        class Config(OrderConfig):
            column: str = "difficulty"
            """Path of the number in the .json of a record."""


        class EasyFirst(Order):
            Config, whole = Config, True

            @property
            def columns(self):
                return (self.config.column,)

            def keys(self, samples, seed, epoch):
                return (samples.columns[self.config.column],)
        '''),
    "eval/tasks": Addition("Length", '''
        """How near the length of an answer is; there is no accuracy."""
        import json

        from mmtune.eval.tasks.base import Question, Task, TaskConfig
        from mmtune.types import Sample, Turn


        class Length(Task):
            Config = TaskConfig

            def questions(self, corpus):
                for record in corpus:
                    facts = json.loads(record.files["json"])
                    asked = Sample(record.id, (Turn("user", (facts["ask"],)),))
                    yield Question(record.id, asked, (facts["say"],))

            def score(self, question, answer):
                return {"closeness": 1 / (1 + abs(len(answer) - len(question.answers[0])))}
        ''', records=(record({"ask": "how many", "say": "two"}),)),
}  # fmt: skip

TRIALS = {
    "a side network over several layers": ("connectors", Addition("Side", '''
        """A state climbs from layer to layer of the encoder: a gate mixes it with the next one, and a step follows."""
        import torch
        from torch import nn

        from mmtune.connectors.base import Connector, ConnectorConfig
        from mmtune.types import Embeds


        class Config(ConnectorConfig):
            width: int = 8
            """Width of the state."""


        class Side(Connector):
            Config = Config

            def __init__(self, config, shape, llm_width):
                super().__init__(config, shape, llm_width)
                layers, wide = shape.layers, config.width
                self.down = nn.ModuleList(nn.Linear(shape.layer_width, wide) for _ in range(layers))
                self.step = nn.ModuleList(nn.Linear(wide, wide) for _ in range(layers))
                self.gate, self.up = nn.Parameter(torch.zeros(layers)), nn.Linear(wide, llm_width)

            def tokens_out(self, frames):
                return frames * self.shape.tokens

            def forward(self, features):
                tokens = features.tokens[..., : self.shape.layers * self.shape.layer_width].to(self.gate.dtype)
                state = 1
                for layer, x in enumerate(tokens.split(self.shape.layer_width, -1)):
                    share = self.gate[layer].sigmoid()
                    state = share * state + (1 - share) * self.down[layer](x)
                    state = state + torch.tanh(self.step[layer](state))
                mask = features.frame_mask[..., None].expand(tokens.shape[:3])
                return Embeds(self.up(state).flatten(1, 2), mask.flatten(1))
        ''', lines=40)),
    "an objective of pairs with a reference": ("objectives", Addition("IPO", '''
        """The preferred of two answers is to be likelier than the other by a fixed margin over a reference (IPO)."""
        from mmtune.objectives.base import Objective, ObjectiveConfig
        from mmtune.reference import Reference
        from mmtune.sequences import log_probs, pairs


        class Config(ObjectiveConfig):
            tau: float = 0.1
            """Half the inverse of the margin, nats."""


        class IPO(Objective):
            Config, unit, sequences, copies = Config, "pair", 2, 1
            measures = {"margin": "higher"}

            def begin(self, model, groups, models):
                self.reference = Reference(groups)

            def counts(self, batch):
                return {"ipo": len(batch.ids), "margin": len(batch.ids)}

            def loss(self, model, batch):
                with self.reference.swapped_in(model):
                    before = log_probs(model, batch)
                chosen, rejected = pairs(log_probs(model, batch) - before)
                margins = chosen - rejected
                return {"ipo": (margins - 1 / (2 * self.config.tau)).square().sum(), "margin": margins.detach().sum()}

            def state(self):
                return self.reference.state()

            def load(self, tensors):
                self.reference.load(tensors)
        ''', lines=40)),
}  # fmt: skip
"""More of what somebody may write: name to the room and the file."""
WRITTEN = {room: (room, addition) for room, addition in ADDITIONS.items()} | TRIALS


def state() -> str:
    """What differs from the last commit in the package."""
    asked = ["git", "status", "--porcelain", "--", "mmtune", "configs"]
    return subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def written(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """package.module:Class of an addition that lies in a folder of its own, allowed as a person allows it."""
    addition = WRITTEN[request.param][1]
    package = f"additions_{request.param.replace('/', '_').replace(' ', '_')}"
    (tmp_path / package).mkdir()
    (tmp_path / package / "mine.py").write_text(dedent(addition.text).lstrip())
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    name = f"{package}.mine:{addition.cls}"
    monkeypatch.setattr(registry, "_allowed", {*registry.allowances(), name})
    return name


def more(addition: Addition) -> dict[str, Any]:
    return {"records": addition.records} if addition.records else {}


def test_every_room_is_added_to() -> None:
    assert set(ADDITIONS) == set(testing.ROOMS)


@pytest.mark.parametrize(("written", "addition"), [(name, name) for name in WRITTEN], indirect=["written"])
def test_an_addition_is_one_file_and_keeps_the_contract(
    written: str, addition: str, tmp_path: Path, record_property: Any
) -> None:
    before, (room, chosen) = state(), WRITTEN[addition]
    testing.check(room, written, chosen.options, **more(chosen))
    files = [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    lines = sum(len(path.read_text().splitlines()) for path in files)
    record_property("files written", len(files))
    record_property("lines", lines)
    print(f"{addition:<36}{len(files)} file written, 0 edited, {lines} lines")
    assert len(files) == 1 and lines <= chosen.lines
    assert state() == before, "a file of the package was edited"


SPOILT = {
    "encoders": ("frames[..., None, None], frames", "frames.sum(), frames"),
    "connectors": ("return frames\n", "return frames + 1\n"),
    "fusion": ("batch.segments == segment", "batch.segments > 0"),
    "llm": ("(segments[:, :, None] == of[:, None]) &", "(of[:, None] > 0) &"),
    "tuners": ("for name in names]\n", "for name in names[1:]]\n"),
    "objectives": (".square().sum()", ".square().mean()"),
    "optimizers": ('- group["lr"] *', "-"),
    "experts": ('"1"', '""'),
    "data/formats": ("Sample(record.id,", 'Sample("same",'),
    "data/orders": ("return (samples.columns[self.config.column],)", "return (samples.hashes.cumsum(),)"),
    "eval/tasks": ('{"closeness"', '{answer or "closeness"'),
}
"""What a check of the room must see."""
SPOILT_PAIRS = {
    "a_state_that_is_forgotten": ("self.reference.load(tensors)", "pass"),
    "answers_that_are_mixed_up": ("pairs(log_probs(model, batch) - before)", "log_probs(model, batch).chunk(2)"),
    "weights_of_the_reference_that_stay": (
        "with self.reference.swapped_in(model):",
        "for _ in [self.reference._swap()]:",
    ),
    "a_measure_in_front": (
        'return {"ipo": len(batch.ids), "margin": len(batch.ids)}',
        'return dict.fromkeys(("margin", "ipo"), len(batch.ids))',
    ),
}
"""The same of the objective of pairs."""


@pytest.mark.parametrize(
    ("spoilt", "change"),
    [(room, SPOILT[room]) for room in testing.ROOMS]
    + [("an objective of pairs with a reference", change) for change in SPOILT_PAIRS.values()],
    ids=[*testing.ROOMS, *SPOILT_PAIRS],
)
def test_the_checks_see_what_breaks_the_contract(
    spoilt: str, change: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    (room, addition), (good, bad) = WRITTEN[spoilt], change
    package = "spoilt_" + "".join(letter if letter.isalnum() else "_" for letter in request.node.callspec.id)
    text = dedent(addition.text).lstrip()
    assert good in text
    (tmp_path / f"{package}.py").write_text(text.replace(good, bad))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    name = f"{package}:{addition.cls}"
    monkeypatch.setattr(registry, "_allowed", {*registry.allowances(), name})
    with pytest.raises(AssertionError) as seen:
        testing.check(room, name, addition.options, **more(addition))
    assert str(seen.value).startswith(f"{name}, "), "what failed is named"


def test_a_check_that_stumbles_is_named_with_what_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    def it_walks(entry: Any) -> None:
        """On two feet."""
        {}["foot"]

    monkeypatch.setattr(testing.connectors, "CHECKS", (it_walks,))
    with pytest.raises(AssertionError, match=r"^linear, it_walks \(On two feet\.\): KeyError: 'foot'"):
        testing.check("connectors", "linear")


def test_a_side_network_reads_the_layers_of_any_tower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a tower that gives two layers: each of them counts, and nothing of the package was edited."""
    import torch

    from mmtune import config
    from tests.encoders.tiny import hf_folder

    before, addition = state(), TRIALS["a side network over several layers"][1]
    (tmp_path / "trial_side.py").write_text(dedent(addition.text).lstrip())
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    monkeypatch.setattr(registry, "_allowed", {*registry.allowances(), "trial_side:Side"})
    encoder = testing.make("encoders", "hf_vision", {"weights": str(hf_folder(tmp_path / "w")), "layers": [-1, 0]})
    cls = registry.find("connectors", "trial_side:Side")
    side = cls(config.validate(cls.Config, {"name": "trial_side:Side"}), encoder.shape, 16)
    assert len(side.down) == 2 and side.down[0].in_features == 32
    x = testing.encoders.item(encoder, 1)[None]
    features = encoder(x, torch.ones(1, 1, dtype=torch.bool))
    features.tokens = features.tokens.detach().requires_grad_()
    side(features).tokens.sum().backward()
    assert all(bool(part.any()) for part in features.tokens.grad.split(32, -1))
    assert state() == before


def test_a_room_without_checks_is_named() -> None:
    from mmtune.errors import ConfigError

    with pytest.raises(ConfigError, match="'cellar'.*\n.*encoders"):
        testing.checks("cellar")
