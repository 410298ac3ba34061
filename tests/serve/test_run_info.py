"""What is known of a run before its weights are read."""

from __future__ import annotations

import gc
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from mmtune.errors import CheckpointError, MmtuneError, UsageError
from mmtune.serve import run_info
from mmtune.serve.run_info import RunInfo, to_stay

RECIPE = """
model: {branches: {sight: {encoder: {name: absent}, kinds: [image, video]}, sound: {kinds: [audio]}}}
chat: {notice: knows little, max_tokens: 40, temperature: 0}
"""


def test_no_run_without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run_info.paths, "PACKAGE", tmp_path)
    with pytest.raises(UsageError, match="no weights of its own"):
        run_info.packaged_run()


def test_a_plan_reads_what_it_needs_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    info = RunInfo.read(tmp_path)
    assert (info.kinds, info.notice, info.max_tokens) == (("image", "video", "audio"), "knows little", 40)
    info.check("video", "a.mp4")
    with pytest.raises(UsageError, match=r"a\.ply.*points"):
        info.check("points", "a.ply")


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"recipe\.yaml"):
        RunInfo.read(tmp_path)


def test_a_plan_is_read_without_heavy_packages(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    code = (
        "import sys; from pathlib import Path; from mmtune.serve import chat, repl; "
        f"chat.run_info.RunInfo.read(Path({str(tmp_path)!r})); "
        "print([name for name in ('torch', 'numpy', 'transformers', 'open_clip') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("fault", [False, True])
@pytest.mark.parametrize("looking", [False, True])
def test_no_garbage_is_looked_for_while_an_engine_comes_to_stay(fault: bool, looking: bool) -> None:
    seen: list[bool] = []

    def load() -> str:
        seen.append(gc.isenabled())
        if fault:
            raise CheckpointError("no weights")
        return "engine"

    before = gc.isenabled()
    (gc.enable if looking else gc.disable)()
    try:
        with pytest.raises(CheckpointError) if fault else nullcontext():
            assert to_stay(load) == "engine"
        assert seen == [False] and gc.isenabled() is looking
        assert gc.get_freeze_count() > 0, "what came is passed over from now on"
    finally:
        gc.unfreeze()
        (gc.enable if before else gc.disable)()


def test_decoders_are_imported_where_ctrl_c_does_not_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipe.yaml").write_text(
        "model: {branches: {sight: {kinds: [image, video]}}}\nchat: {notice: '', max_tokens: 4, temperature: 0}"
    )
    info = RunInfo.read(tmp_path)
    seen: list[str] = []
    monkeypatch.setattr(run_info.importlib, "import_module", seen.append)
    with pytest.raises(MmtuneError):  # there are no weights
        info.load(decoders=True)
    assert seen == ["mmtune.media.image", "mmtune.media.video"]
