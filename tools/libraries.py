"""What libraries do where mmtune has code of its own: speed, equality, and damaged or hostile input.

    tools/libraries [NAME...]  # rates, clouds, tokenizer, cache, tar, ranks, ...

Prints one line a finding; docs/libraries.md gives them with what follows from them. Libraries that mmtune does not
need are compared where they are installed: pip install plyfile trimesh pypcd4 rouge-score sentencepiece
"""

from __future__ import annotations

import importlib.util
import inspect
import io
import json
import math
import os
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch


def main(chosen: list[str]) -> None:
    torch.set_num_threads(1)
    for name, compare in COMPARISONS.items():
        if not chosen or name in chosen:
            for line in compare():
                print(f"{name}: {line}", flush=True)


def seconds(call: Callable[[], Any], times: int = 3) -> float:
    """The least of a few; the first, which fills caches, does not count."""
    call()
    found = []
    for _ in range(times):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return min(found)


def outcome(call: Callable[[], Any]) -> str:
    """What a call gives or raises, short."""
    try:
        return f"gives {str(call())[:90]}"
    except Exception as error:
        return f"raises {type(error).__name__}: {' '.join(str(error).split())[:90]}"


def missing(*packages: str) -> list[str]:
    return [name for name in packages if importlib.util.find_spec(name) is None]


def rates() -> Iterator[str]:
    from torchaudio.functional import resample as theirs

    from mmtune.media._resample import resample as ours

    for source, target in ((44100, 16000), (48000, 16000), (8000, 16000), (8001, 4000), (22051, 8000)):
        wave = torch.rand(1, source * 10, generator=torch.Generator().manual_seed(0)) * 2 - 1
        apart = (ours(wave, source, target) - theirs(wave, source, target)).abs().max().item()
        mine, other = (seconds(partial(one, wave, source, target)) for one in (ours, theirs))
        common = math.gcd(source, target)
        kernel = target // common * (2 * math.ceil(6 * source / min(source, target) / 0.99) + source // common) * 4
        yield (
            f"{source} to {target} Hz, 10 s: {apart:.1e} apart; ours {mine * 1e3:.1f} ms, torchaudio "
            f"{other * 1e3:.1f} ms with a kernel of {kernel / 1e6:.1f} MB"
        )


def clouds() -> Iterator[str]:
    from mmtune.media import points
    from mmtune.media.base import Limits, Sampling

    def mine(data: bytes) -> str:
        return str(tuple(points.decode(data, "ply", Sampling(), Limits(), "a.ply").data.shape))

    table = np.random.default_rng(0).random((200_000, 4)).astype("<f4")
    names = "".join(f"property float {name}\n" for name in ("x", "y", "z", "heat"))
    head = "ply\nformat binary_little_endian 1.0\nelement vertex {}\n" + names + "end_header\n"
    whole = head.format(len(table)).encode() + table.tobytes()
    cut, claimed = whole[:-800], head.format(4_000_000_000).encode() + table.tobytes()
    readers: dict[str, Callable[[bytes], str]] = {"ours": mine}
    if not missing("trimesh"):
        import trimesh

        readers["trimesh"] = lambda data: str(trimesh.load(io.BytesIO(data), file_type="ply").vertices.shape)
    if not missing("plyfile"):
        import plyfile

        readers["plyfile"] = lambda data: str(len(plyfile.PlyData.read(io.BytesIO(data))["vertex"].data))
    for name, read in readers.items():
        yield f"{name}: 200000 points of four columns in {seconds(lambda read=read: read(whole)) * 1e3:.0f} ms"
        for what, data in (("whole", whole), ("800 bytes short", cut), ("claims 4e9 points", claimed)):
            yield f"{name}: {what}: {outcome(lambda read=read, data=data: read(data))}"


def pcd() -> Iterator[str]:
    from mmtune.media import points
    from mmtune.media.base import Limits, Sampling

    head = "VERSION .7\nFIELDS x y z heat\nSIZE 4 4 4 4\nTYPE F F F F\nCOUNT 1 1 1 1\nWIDTH {0}\nHEIGHT 1\n"
    head += "VIEWPOINT 0 0 0 1 0 0 0\nPOINTS {0}\nDATA {1}\n"
    table = np.random.default_rng(0).random((200_000, 4)).astype("<f4")
    whole = head.format(len(table), "binary").encode() + table.tobytes()
    packed = struct.pack("<II", 30, 1 << 31) + bytes(30)  # 30 bytes that say they are 2 GiB
    files = {
        "whole": whole,
        "800 bytes short": whole[:-800],
        "claims 1e8 points in 30 bytes": head.format(10**8, "binary_compressed").encode() + packed,
        "one field unlike its size": whole.replace(b"SIZE 4 4 4 4", b"SIZE 4 4 4 8"),
    }
    readers: dict[str, Callable[[bytes], str]] = {
        "ours": lambda data: str(tuple(points.decode(data, "pcd", Sampling(), Limits(), "a.pcd").data.shape))
    }
    if not missing("pypcd4", "lzf"):
        from pypcd4 import PointCloud

        readers["pypcd4"] = lambda data: str(PointCloud.from_fileobj(io.BytesIO(data)).numpy().shape)
    for name, read in readers.items():
        yield f"{name}: 200000 points of four columns in {seconds(partial(read, whole)) * 1e3:.0f} ms"
        for what, data in files.items():
            yield f"{name}: {what}: {outcome(partial(read, data))}"


def tokenizer() -> Iterator[str]:
    from tokenizers import Tokenizer

    from mmtune.checkpoint.foreign._sentencepiece import to_json

    if gone := missing("sentencepiece"):
        yield f"needs {', '.join(gone)}"
        return
    import sentencepiece

    words = np.random.default_rng(0).choice(
        ["red", "blue", "circle", "square", "moves", "left", "right", "the", "a", "is", "of", "in", "up"], (2000, 9)
    )
    texts, model = [" ".join(line) for line in words], io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, vocab_size=330, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = Tokenizer.from_str(json.dumps(to_json(model.getvalue())))
    texts += ["  two  blanks ", "un café", "赤い丸 \n\t", ""]
    equal = sum(ours.encode(text, add_special_tokens=False).ids == theirs.encode(text) for text in texts)
    mine = seconds(lambda: [ours.encode(text) for text in texts])
    yield f"{equal} of {len(texts)} texts with equal ids; tokenizers {mine * 1e3:.0f} ms, sentencepiece " + (
        f"{seconds(lambda: theirs.encode(texts, num_threads=1)) * 1e3:.0f} ms"
    )
    for what, data in (("cut in half", model.getvalue()[: len(model.getvalue()) // 2]), ("noise", b"\xff" * 1000)):
        load = partial(sentencepiece.SentencePieceProcessor, model_proto=data)
        yield f"{what}: ours {outcome(partial(to_json, data))}; sentencepiece {outcome(load)}"


def cache() -> Iterator[str]:
    import fsspec

    memory = fsspec.filesystem("memory")
    with tempfile.TemporaryDirectory() as folder:
        memory.pipe("/shards/a.tar", b"first")
        kept = fsspec.filesystem("filecache", target_protocol="memory", cache_storage=folder)
        kept.cat("/shards/a.tar")
        memory.pipe("/shards/a.tar", b"other")
        yield f"filecache: a file that changed at its source: {outcome(lambda: kept.cat('/shards/a.tar'))}"
        for number in range(20):
            memory.pipe(f"/shards/{number}.tar", bytes(1 << 20))
            with kept.open(f"/shards/{number}.tar") as file:
                file.read(1)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    options = [name for name in inspect.signature(type(kept).__mro__[1].__init__).parameters if name != "self"]
    yield f"filecache: 20 shards of 1 MiB take {size >> 20} MiB; its options are {', '.join(options)}"


def tar(many_members: int = 20_000) -> Iterator[str]:
    import webdataset

    from mmtune.data._tar import Damage, walk

    def made(path: Path, members: int, size: int) -> None:
        with tarfile.open(path, "w") as file:
            for number in range(members):
                info = tarfile.TarInfo(f"{number:06d}.txt")
                info.size = size
                file.addfile(info, io.BytesIO(bytes(size)))

    def ours(path: Path) -> str:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            found = list(walk(descriptor))
        finally:
            os.close(descriptor)
        damages = sum(isinstance(one, Damage) for one in found)
        return f"{len(found) - damages} members, {damages} damaged stretches named"

    def standard(path: Path) -> str:
        with tarfile.open(path) as file:
            return f"{len(file.getmembers())} members"

    def web(path: Path) -> str:
        return f"{sum(1 for _ in webdataset.WebDataset(str(path), shardshuffle=False))} samples"

    with tempfile.TemporaryDirectory() as folder:
        many, bad = Path(folder) / "many.tar", Path(folder) / "bad.tar"
        made(many, many_members, 100)
        made(bad, 100, 100)
        with bad.open("r+b") as file:
            file.seek(40 * 1024)
            file.write(b"\xff" * 512)  # the header of the 41st
        for name, read in (("ours", ours), ("tarfile", standard), ("webdataset", web)):
            yield f"{name}: headers of {many_members} members in {seconds(lambda read=read: read(many), 2):.2f} s"
            yield f"{name}: one of 100 headers damaged: {outcome(lambda read=read: read(bad))}"


_RANK = """
import datetime, sys, time, torch, torch.distributed as d
d.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2,
                     timeout=datetime.timedelta(seconds=3))
if d.get_rank():
    time.sleep(8)
else:
    begin = time.time()
    try:
        d.all_reduce(torch.ones(1))
    except RuntimeError as error:
        print(f"after {time.time() - begin:.0f} s: {str(error)[:160]}")
"""


def ranks() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-P", "-c", _RANK, f"{folder}/store"]
        hangs = subprocess.Popen([*words, "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        waits = subprocess.run([*words, "0"], capture_output=True, text=True, timeout=60, check=False)
        hangs.kill()
        hangs.wait()
    yield f"torch's timeout, the other rank hangs: {' '.join(waits.stdout.split()) or waits.stderr[-200:]}"


def rouge() -> Iterator[str]:
    from mmtune.eval.metrics import rouge_l

    if gone := missing("rouge_score"):
        yield f"needs {', '.join(gone)}"
        return
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])

    def theirs(answer: str, reference: str) -> float:
        return scorer.score(reference, answer)["rougeL"].fmeasure

    words = np.random.default_rng(0).choice(["a", "red", "circle", "moves", "left", "then", "stops"], (1000, 2, 12))
    pairs = [(" ".join(a), " ".join(b)) for a, b in words]
    apart = max(abs(rouge_l(a, [b]) - theirs(a, b)) for a, b in pairs)
    mine = seconds(lambda: [rouge_l(a, [b]) for a, b in pairs])
    other = seconds(lambda: [theirs(a, b) for a, b in pairs])
    yield f"1000 pairs: {apart:.1e} apart; ours {mine * 1e3:.0f} ms, rouge_score {other * 1e3:.0f} ms"
    for text in ("красный круг", "赤い丸", "un café"):
        yield f"{text!r} with itself: ours {rouge_l(text, [text]):.2f}, rouge_score {theirs(text, text):.2f}"


def processes() -> Iterator[str]:
    from mmtune.children import isolated

    with isolated(), ProcessPoolExecutor(1) as pool:
        call = pool.submit(time.sleep, 3)
        begin = time.perf_counter()
        yield f"ProcessPoolExecutor, a limit of 0.2 s for a call: {outcome(lambda: call.result(timeout=0.2))}"
        worker = next(iter(pool._processes.values()))
        alive = worker.is_alive()
    yield f"after it the process lives: {alive}; leaving the pool waits {time.perf_counter() - begin:.1f} s for it"
    os.environ["HF_TOKEN"] = "secret"
    with isolated(), ProcessPoolExecutor(1) as pool:
        got = outcome(pool.submit(os.getenv, "HF_TOKEN").result)
    yield f"a key in the environment, asked for in the process: {got}"


def yaml() -> Iterator[str]:
    import yaml as library

    from mmtune import config

    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefg", "bcdefgh", strict=True)
    )
    for text in ("lr: 1e-4", "mode: on", "at: 1:30", "a: 1\na: 2", "<<: {a: 1}"):
        theirs = outcome(lambda text=text: library.safe_load(text))
        yield f"{text!r}: safe_load {theirs}; ours {outcome(lambda text=text: config.parse(text, 'a.yaml'))}"
    theirs = outcome(lambda: len(library.safe_load(bomb)))
    yield f"43 million values by aliases: safe_load {theirs} keys; ours {outcome(lambda: config.parse(bomb, 'a.yaml'))}"


def jsons() -> Iterator[str]:
    from mmtune.data._json import tree

    record = json.dumps({"id": "1", "conversations": [{"from": "human", "value": "a word " * 40}] * 8}).encode()
    mine, other = seconds(lambda: tree(record, "a")), seconds(lambda: json.loads(record))
    yield f"a record: ours {mine * 1e6:.0f} us, json.loads {other * 1e6:.0f} us"
    hostile = {
        "a key twice": b'{"a": 1, "a": 2}',
        "nested 100000 deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "a number of 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
        "2 million values": b'{"a": [' + b"0," * 2_000_000 + b"0]}",
    }
    for what, data in hostile.items():
        theirs = outcome(lambda data=data: json.loads(data))
        yield f"{what}: json.loads {theirs[:60]}; ours {outcome(lambda data=data: tree(data, 'a'))[:60]}"


COMPARISONS: dict[str, Callable[[], Iterator[str]]] = {
    "rates": rates, "clouds": clouds, "pcd": pcd, "tokenizer": tokenizer, "cache": cache, "tar": tar, "ranks": ranks,
    "rouge": rouge, "processes": processes, "yaml": yaml, "json": jsons,
}  # fmt: skip

if __name__ == "__main__":
    main(sys.argv[1:])
