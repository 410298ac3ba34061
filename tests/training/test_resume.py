"""n + n steps are 2n steps, to the bit: with workers, shuffling, packing, two streams, dropout; a process each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmtune import config
from mmtune.recipe import Recipe
from tests.training import world

STEPS = 8

LORA = {"name": "hf_peft", "method": "lora", "r": 2, "lora_alpha": 4, "lora_dropout": 0.2, "target_modules": ["q_proj"]}
CHANGES = {
    "model": {"tuners": [LORA]},
    "groups": {"speech": {"match": ["@hf_peft"], "lr": 1e-2, "streams": ["words"]}},
}

CHILD = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from mmtune import config
from mmtune.recipe import Recipe
from mmtune.training import loop, stepper
from mmtune.training.signals import Stop
recipe, out, stop, kill, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
recipe = config.load(Recipe, recipe, [f"run.workers={workers}"])
real = stepper.take_step
done = 0
def counted(*args):
    global done
    outcome = real(*args)
    done += 1
    if done == kill:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)
    if done == stop:
        import os, signal
        os.kill(os.getpid(), signal.SIGTERM)
    return outcome
stepper.take_step = counted
sys.exit(loop.train(recipe, out, resume=out.exists(), progress="off").code)
"""


def child(recipe, out, stop=0, kill=0, workers=0):
    args = [sys.executable, "-c", CHILD, str(recipe), str(out), str(stop), str(kill), str(workers)]
    done = subprocess.run(args, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == (143 if stop else -9 if kill else 0), done.stderr
    return done


def state(out: Path, step: int = STEPS) -> dict[str, torch.Tensor]:
    folder = out / "state" / f"step-{step:08d}"
    return {f"{f.stem}/{k}": t for f in folder.glob("*.safetensors") for k, t in load_file(f).items()}


def same(left: Path, right: Path) -> None:
    ours, theirs = state(left), state(right)
    assert ours.keys() == theirs.keys() and len(ours) > 20
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    for file in ("sight", "speech"):
        name = f"weights/{file}.safetensors"
        assert (left / name).read_bytes() == (right / name).read_bytes()
    rows = [[json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in (left, right)]
    timed = ("samples_per_second", "tokens_per_second", "data_wait")
    first, second = [[{k: v for k, v in row.items() if k not in timed} for row in run] for run in rows]
    assert first == second and [row["step"] for row in first] == list(range(1, STEPS + 1))
    infos = [json.loads((out / f"state/step-{STEPS:08d}/run.json").read_text()) for out in (left, right)]
    assert infos[0]["positions"] == infos[1]["positions"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """(recipe file, run folder) of a run without a break."""
    folder = tmp_path_factory.mktemp("resume")
    tree = config.merge(world.tree(folder, save_every=3), CHANGES)
    tree["schedule"]["steps"] = STEPS
    recipe = config.validate(Recipe, tree)
    (folder / "recipe.yaml").write_text(config.dump(recipe))
    child(folder / "recipe.yaml", folder / "straight")
    return folder / "recipe.yaml", folder / "straight"


def test_the_straight_run_is_worth_comparing(straight):
    """Both streams took part, rows held several samples, an epoch ended, and dropout was on."""
    recipe, out = straight
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {row["stream"] for row in rows} == {"pictures", "words"}
    assert max(row["samples"] for row in rows) > 2
    info = json.loads((out / f"state/step-{STEPS:08d}/run.json").read_text())
    assert max(place["epoch"] for place in info["positions"]["streams"].values()) == 1
    dropped = config.load(Recipe, recipe).model.tuners[0].options["lora_dropout"]
    assert dropped > 0


@pytest.mark.parametrize(("stop", "workers"), [(4, 0), (3, 2)])
def test_stopped_and_gone_on(straight, tmp_path, stop, workers):
    recipe, out = straight
    done = child(recipe, tmp_path / "run", stop=stop, workers=workers)
    assert "finishing this step" in done.stderr
    child(recipe, tmp_path / "run", workers=2 - workers)
    same(out, tmp_path / "run")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_to_the_whole_group_while_samples_are_waited_for(straight, tmp_path, number):
    """As batch systems send it: data workers hear it too, and the run needs one more sample to end its step."""
    recipe, out = straight
    code = CHILD.replace("stepper.take_step = counted\n", WAITING)
    args = [sys.executable, "-c", code, str(recipe), str(tmp_path / "run"), "0", "0", "2"]
    done = subprocess.run(args, capture_output=True, text=True, timeout=90, check=False, start_new_session=True,
                          env={**os.environ, "GROUP_SIGNAL": str(int(number))})  # fmt: skip
    assert done.returncode == 128 + number, done.stderr
    assert "finishing this step" in done.stderr
    assert list((tmp_path / "run" / "state").glob("step-*")) and not (tmp_path / f"run/state/step-{STEPS:08d}").exists()
    child(recipe, tmp_path / "run")
    same(out, tmp_path / "run")


WAITING = """
import os, signal, threading, time
from mmtune.data import loader, pool
mark, sent = Path(f"{out}.mark"), []
real_make, real_get = loader.Loader.make, pool.Pool.get

def make(self, name, position):
    if (name, position) == ("pictures", 13):
        mark.touch()
        time.sleep(3)  # steps are far shorter: the main process comes to wait for this one
    return real_make(self, name, position)

def get(self, number):
    if mark.exists() and not sent:
        sent.append(number)
        threading.Timer(1.5, os.killpg, (os.getpid(), int(os.environ["GROUP_SIGNAL"]))).start()
    return real_get(self, number)

loader.Loader.make, pool.Pool.get = make, get
"""


def test_killed_between_saves(straight, tmp_path):
    """Killed in step 5, two steps after the last save: steps 4 and 5 come again, and no line is doubled."""
    recipe, out = straight
    child(recipe, tmp_path / "run", kill=5)
    assert not (tmp_path / "run/state/step-00000005").exists()
    child(recipe, tmp_path / "run")
    same(out, tmp_path / "run")


def test_a_damaged_state_falls_back(straight, tmp_path):
    recipe, out = straight
    child(recipe, tmp_path / "run", stop=5)
    weights = tmp_path / "run/state/step-00000005/weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    child(recipe, tmp_path / "run")
    same(out, tmp_path / "run")


def test_other_shuffles_are_other_runs(straight, tmp_path):
    """The comparison can fail: another seed gives other weights."""
    recipe, out = straight
    text = recipe.read_text().replace("seed: 3", "seed: 4")
    (tmp_path / "other.yaml").write_text(text)
    child(tmp_path / "other.yaml", tmp_path / "run")
    with pytest.raises(AssertionError):
        same(out, tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
