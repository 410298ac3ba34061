"""`torchrun` and `accelerate launch` start the same run, and the files for the latter are ones that it reads."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmtune import config
from tests.training import world

ROOT = Path(__file__).resolve().parents[2]
FILES = {"1_gpu": (1, 1), "8_gpus": (1, 8), "2_nodes": (2, 16)}


def test_the_files_of_accelerate():
    from accelerate.commands.config.config_args import load_config_from_file

    folder = ROOT / "configs" / "accelerate"
    assert {path.stem for path in folder.iterdir()} == set(FILES)
    for name, counts in FILES.items():
        loaded = load_config_from_file(str(folder / f"{name}.yaml"))  # refuses keys that it does not know
        assert (loaded.num_machines, loaded.num_processes) == counts
        assert loaded.mixed_precision == "no" and not loaded.use_cpu, "the recipe decides"


def launch(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    env = {name: value for name, value in env.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    child = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=folder, env=env, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = child.communicate(timeout=300)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(words, child.returncode, said)


def port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


@pytest.mark.slow
def test_both_start_the_same_run(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(config.dump(world.recipe(tmp_path / "world", {"schedule": {"steps": 2, "warmup": 0}})))
    words = ["mmtune", "train", str(recipe), "--out"]
    meeting = ["--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port", port()]
    starts = {
        "alone": [*words, "alone"],
        "torchrun": [
            *("torch.distributed.run", *meeting, "-m", *words, "torchrun"),
            *("run.strategy=shard_all", "run.device=auto"),  # which is the processor where there is nothing else
        ],
        "accelerate": [
            *("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"),
            *("--mixed_precision", "no", "--main_process_ip", "127.0.0.1", "--main_process_port", port()),
            *("-m", *words, "accelerate", "run.strategy=shard"),
        ],
    }
    weights = {}
    for name, start in starts.items():
        done = launch(start, tmp_path)
        assert done.returncode == 0, f"{name}:\n{done.stdout[-3000:]}"
        assert name == "alone" or done.stdout.count("2 steps, loss") == 1, "one of two ranks talks"
        files = sorted((tmp_path / name / "weights").glob("*.safetensors"))
        weights[name] = {f"{file.name} {key}": t for file in files for key, t in load_file(file).items()}
    for name in ("torchrun", "accelerate"):
        assert weights[name].keys() == weights["alone"].keys()
        for key, tensor in weights["alone"].items():
            torch.testing.assert_close(weights[name][key], tensor, rtol=0, atol=1e-6)
