"""Folders from elsewhere whose files are none: pipes, sockets, devices, circles of links, folders, and text that is no
text. Each is a refusal by name within seconds, or makes no difference."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmtune import weights_file
from mmtune.checkpoint import convert, seal, store
from mmtune.errors import CheckpointError, MmtuneError
from mmtune.serve.run_info import RunInfo
from tests.checkpoint.foreign.makers import llava_hf


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.mkdir()


def a_circle(path: Path) -> None:
    path.symlink_to(path.name)


def no_end(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as end:
        end.bind(path.name)


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x80{}")


def a_hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


ODD = [a_pipe, a_folder, a_circle, no_end, a_socket, no_text, a_hole, deep]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llava_hf.folder(tmp_path_factory.mktemp("published") / "llava")[0]


@pytest.fixture(scope="module")
def run(published: Path) -> Path:
    return convert.import_checkpoint("llava_hf", [str(published)], published.parent / "run")


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Ends a read that waits for a writer."""

    def late(*_: object) -> None:
        raise AssertionError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def in_place_of(file: Path, odd: Callable[[Path], None], ask: Callable[[], object], harmless: bool = False) -> None:
    """Replace a file, ask, and put it back."""
    aside = file.with_name("aside.bak")
    file.rename(aside)
    try:
        odd(file)
        with within(20):
            if harmless:
                ask()
            else:
                with pytest.raises(MmtuneError) as caught:
                    ask()
                assert caught.value.expected, f"{file.name}: {caught.value}"
    finally:
        shutil.rmtree(file) if file.is_dir() and not file.is_symlink() else file.unlink()
        aside.rename(file)


@pytest.mark.parametrize("odd", ODD, ids=lambda one: one.__name__)
def test_files_of_a_run(odd: Callable[[Path], None], run: Path) -> None:
    files = [path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "card.md"]
    assert len(files) >= 10
    for file in files[ODD.index(odd) % 4 :: 4]:
        in_place_of(file, odd, lambda: store.load_run(run))
    in_place_of(run / "card.md", odd, lambda: store.load_run(run), harmless=True)
    in_place_of(run / "recipe.yaml", odd, lambda: RunInfo.read(run))


@pytest.mark.parametrize("odd", ODD, ids=lambda one: one.__name__)
def test_files_of_a_published_folder(odd: Callable[[Path], None], published: Path, tmp_path: Path) -> None:
    """The tokenizer's settings and the preprocessing, too: without them it is another model."""
    for file in sorted(published.iterdir())[ODD.index(odd) % 2 :: 2]:
        in_place_of(file, odd, lambda: convert.import_checkpoint("llava_hf", [str(published)], tmp_path / "out"))
        assert not list(tmp_path.iterdir())


def test_a_file_of_weights_that_is_a_pipe_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "blip2.safetensors")
    with within(20), pytest.raises(MmtuneError, match=r"blip2.safetensors is no plain file"):
        convert.import_checkpoint("blip2", [f"blip2={tmp_path / 'blip2.safetensors'}"], tmp_path / "out", ["blocks=1"])


def header(text: str, data: bytes = b"", size: int | None = None) -> bytes:
    raw = text.encode()
    return (len(raw) if size is None else size).to_bytes(8, "little") + raw + data


W = '{"w":{"dtype":"%s","shape":%s,"data_offsets":%s}}'
LIES = {
    "nothing": b"",
    "short": b"\x01\x00",
    "longer than the file": header("{}", size=1 << 40),
    "huge": header("{}", size=2**64 - 1),
    "no JSON": header("[" * 5000),
    "no UTF-8": (3).to_bytes(8, "little") + b"\xff\xff\xff",
    "beyond the end": header(W % ("F32", "[100]", "[0,400]"), b"\0" * 16),
    "too few bytes": header(W % ("F32", "[4]", "[0,8]"), b"\0" * 8),
    "backwards": header(W % ("F32", "[1]", "[4,0]"), b"\0" * 4),
    "below zero": header(W % ("F32", "[-1]", "[0,4]"), b"\0" * 4),
    "overflowing": header(W % ("F32", "[4294967296,4294967296,4294967296]", "[0,4]"), b"\0" * 4),
    "no type": header(W % ("F33", "[1]", "[0,4]"), b"\0" * 4),
    "a fraction": header(W % ("F32", "[1.5]", "[0,4]"), b"\0" * 4),
    "over each other": header(
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b"\0" * 4,
    ),
    "twice": header(
        '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
        b"\0" * 8,
    ),
    "a hole": header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}', b"\0" * 8),
    "more behind": header(W % ("F32", "[1]", "[0,4]"), b"\0" * 400),
}


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie(lie: str, run: Path, published: Path, tmp_path: Path) -> None:
    """In a file, in sealed weights of a run, in its base, and in what is imported."""
    file = tmp_path / "w.safetensors"
    file.write_bytes(LIES[lie])
    with pytest.raises(CheckpointError, match=r"w.safetensors is damaged"):
        weights_file.read(file)
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    inside = sorted((copy / "weights").glob("*.safetensors"))[0].name

    def fill(draft: Path) -> None:
        (draft / inside).write_bytes(LIES[lie])

    seal.write(copy / "weights", fill)
    with pytest.raises(CheckpointError, match=inside):
        store.load_run(copy)
    other = Path(shutil.copytree(published, tmp_path / "published"))
    (other / "model.safetensors").write_bytes(LIES[lie])
    with pytest.raises(CheckpointError, match=r"model.safetensors"):
        convert.import_checkpoint("llava_hf", [str(other)], tmp_path / "out")


@pytest.mark.parametrize("place", ["/etc/hostname", "../other.safetensors", "a/../../b.safetensors", 5, None, ["x"]])
def test_an_index_of_shards_names_files_beside_it(place: object, published: Path, tmp_path: Path) -> None:
    import json

    copy = Path(shutil.copytree(published, tmp_path / "published"))
    save_file({"w": torch.ones(1)}, tmp_path / "other.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": place}}))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json"):
        convert.import_checkpoint("llava_hf", [str(copy)], tmp_path / "out")
