"""The whole conversion: the same shards with any number of processes, after a kill, and nothing left of others."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmtune import cli
from mmtune.commands import convert
from mmtune.commands.convert import summary
from mmtune.data.convert import write
from mmtune.data.shards import Corpus
from mmtune.errors import UsageError
from tests.data import sources
from tests.data.sources import TALK

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def media(tmp_path):
    return sources.folder(tmp_path / "media")


@pytest.fixture
def listed(tmp_path):
    """Thirty records, of which every seventh names nothing."""
    rows = [{"image": "a/1.png" if number % 7 else "lost.png", "conversations": TALK} for number in range(30)]
    file = tmp_path / "list.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_the_number_of_processes_changes_nothing(tmp_path, media, listed):
    one, refused = sources.made(listed, tmp_path / "one", media=[media], per_shard=4)
    many, same = sources.made(listed, tmp_path / "many", workers=3, media=[media], per_shard=4)
    assert sources.shards(tmp_path / "one") == sources.shards(tmp_path / "many") and refused == same
    assert (one.written, one.refused, one.shards) == (many.written, many.refused, many.shards) == (25, 5, 8)
    assert [line["line"] for line in refused] == [1, 8, 15, 22, 29]
    index = json.loads((tmp_path / "many" / "manifest.json").read_text())
    assert sum(shard["samples"] for shard in index["shards"].values()) == len(Corpus(tmp_path / "many")) == 25


def test_it_goes_on_after_a_stop_at_any_piece(tmp_path, media, listed, monkeypatch):
    sources.made(listed, tmp_path / "whole", media=[media], per_shard=4)
    whole, right = write._shard, sources.shards(tmp_path / "whole")
    done, stops = [], []

    def until(path, builder, raws):
        if stops and len(done) == stops[0]:
            path.with_name(f"{path.name}.123.part").write_bytes(b"half")
            raise KeyboardInterrupt
        done.append(path.name)
        return whole(path, builder, raws)

    monkeypatch.setattr(write, "_shard", until)
    for stop in range(8):
        out = tmp_path / f"out{stop}"
        done[:], stops[:] = [], [stop]
        with pytest.raises(KeyboardInterrupt):
            sources.made(listed, out, media=[media], per_shard=4)
        stops.clear()
        with pytest.raises(UsageError, match="stopped"):
            sources.made(listed, out, media=[media], per_shard=4)
        report, refused = sources.made(listed, out, media=[media], resume=True)  # the number in a shard is known
        assert sources.shards(out) == right and len(done) == 8, "nothing is made twice"
        assert (report.written, len(refused)) == (25, 5)
        assert not list(out.glob("*.part")) and not (out / ".convert").exists()


def test_it_goes_on_after_a_kill(tmp_path, media):
    rows = [{"image": "a/1.png", "conversations": TALK}] * 600
    file = tmp_path / "list.json"
    file.write_text(json.dumps(rows))
    words = ["data", "convert", str(file), "--media", str(media), "--per-shard", "10"]
    out = tmp_path / "out"
    command = [sys.executable, "-m", "mmtune", *words, "--workers", "2", "--out", str(out)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        end = time.monotonic() + 60
        while len(list(out.glob("*.tar"))) < 3 and time.monotonic() < end:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
    assert 0 < len(list(out.glob("*.tar"))) < 60, "it was killed in the middle"
    done = CliRunner().invoke(cli.app, [*words, "--out", str(out), "--resume"])
    assert done.exit_code == 0 and "600 written into 60 shards" in done.stdout, done.output
    sources.made(file, tmp_path / "whole", media=[media], per_shard=10)
    assert sources.shards(out) == sources.shards(tmp_path / "whole")


def test_nothing_of_an_earlier_conversion_is_read(tmp_path, media, listed):
    sources.made(listed, tmp_path / "out", media=[media], per_shard=4)
    short = tmp_path / "short.jsonl"
    short.write_text(json.dumps({"image": "a/1.png", "conversations": TALK}))
    with pytest.raises(UsageError, match="finished, 8 shards") as caught:
        sources.made(short, tmp_path / "out", media=[media])
    assert "--overwrite" in caught.value.hint
    with pytest.raises(UsageError, match=r"/out\b.*source"):
        sources.made(short, tmp_path / "out", media=[media], resume=True)
    sources.made(short, tmp_path / "out", media=[media], overwrite=True)
    assert list(sources.shards(tmp_path / "out")) == ["00000.tar"] and len(Corpus(tmp_path / "out")) == 1
    assert list((tmp_path / "out").glob("*.index.json")) == [tmp_path / "out" / "00000.tar.index.json"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.tar").write_bytes(b"")
    for how in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match=r"mine\.tar"):
            sources.made(short, tmp_path / "other", media=[media], **how)


def test_a_source_that_changed_is_not_gone_on_with(tmp_path, media, listed):
    sources.made(listed, tmp_path / "out", media=[media], per_shard=4)
    report, _ = sources.made(listed, tmp_path / "out", media=[media], per_shard=4, resume=True)
    assert report.written == 25, "finished already"
    listed.write_text(listed.read_text() + "\n")
    with pytest.raises(UsageError, match="another source or with other options: source"):
        sources.made(listed, tmp_path / "out", media=[media], per_shard=4, resume=True)


def test_one_conversion_at_a_time(tmp_path, media, listed, monkeypatch):
    from mmtune.data.convert import state

    monkeypatch.setattr(state, "PATIENCE", 0.2)
    (tmp_path / "out").mkdir()
    with state.locked(tmp_path / "out"), pytest.raises(UsageError, match=r"/out\b"):
        sources.made(listed, tmp_path / "out", media=[media])


def test_addresses_of_fsspec(tmp_path, media, listed):
    """Records, media and shards in memory; resumed with what lies there."""
    import fsspec

    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pipe("/set/list.jsonl", listed.read_bytes())
    files.pipe("/set/a/1.png", (media / "a" / "1.png").read_bytes())
    from mmtune.data.convert.base import Options
    from mmtune.data.convert.run import convert

    for how in ({}, {"resume": True}, {"overwrite": True}):
        report = convert("memory://set/list.jsonl", "memory://out/s", Options(per_shard=4), **how)
        assert (report.written, report.refused) == (25, 5)
    with pytest.raises(UsageError, match="finished"):
        convert("memory://set/list.jsonl", "memory://out/s", Options(per_shard=4))
    sources.made(f"file://{listed}", tmp_path / "here", media=[media], per_shard=4)
    there = {name.rpartition("/")[2]: files.cat(name) for name in files.find("/out/s") if name.endswith(".tar")}
    assert there == sources.shards(tmp_path / "here")
    assert not [name for name in files.find("/out/s") if ".convert/" in name]
    assert len(files.cat("/out/s/convert.jsonl").splitlines()) == 5
    assert len(Corpus("memory://out/s/*.tar")) == 25


def test_the_command(tmp_path, media):
    file = tmp_path / "list.csv"
    file.write_text("video,caption\nv_1.mp4,A dog\nlost.mp4,Gone\n")
    words = ["data", "convert", str(file), "--media", str(media), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert (
        "2 records: 1 written into 1 shard " in done.stdout and "1 missing_key, first: line 3: lost.mp4" in done.stdout
    )
    assert "read as `caption`" in done.stderr and "format: {name: caption}" in done.stdout
    file.write_text("video,caption\nlost.mp4,Gone\n")
    done = CliRunner().invoke(cli.app, [*words[:-1], str(tmp_path / "none")])
    assert isinstance(done.exception, UsageError) and "none of 1 records" in done.exception.seen
    assert done.exit_code != 0 and len(sources.lines(tmp_path / "none")) == 1
    file.write_text("video,caption\nv_1.mp4,Back\n")  # mended: the same command works, with no word more
    assert CliRunner().invoke(cli.app, [*words[:-1], str(tmp_path / "none")]).exit_code == 0


def test_a_large_file_is_named_before_it_is_read(tmp_path, media, listed, monkeypatch):
    for bound, told in ((1, True), (10**9, False)):
        monkeypatch.setattr(convert, "LARGE", bound)
        words = ["data", "convert", str(listed), "--media", str(media), "--out", str(tmp_path / f"out{bound}")]
        assert CliRunner().invoke(cli.app, words).stderr.startswith("reading ") == told


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_full_disk_is_named_and_gone_on_with(tmp_path, media, workers):
    file = tmp_path / "list.jsonl"
    rows = [{"image": "a/1.png", "conversations": [TALK[0], {**TALK[1], "value": "x" * size}]} for size in (1, 90_000)]
    file.write_text("\n".join(map(json.dumps, rows)))
    words = [sys.executable, "-m", "mmtune", "data", "convert", str(file), "--media", str(media), "--per-shard", "1"]
    words += ["--out", str(tmp_path / "out"), "--workers", workers]
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # noqa: E731
    done = subprocess.run(words, preexec_fn=full, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode and "00001.tar" in done.stderr and "--resume" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    done = subprocess.run([*words, "--resume"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and "2 written" in done.stdout and len(Corpus(tmp_path / "out")) == 2


def test_a_stop_by_hand_says_how_to_go_on(tmp_path, media, listed, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(write.Job, "work", stopped)
    words = ["data", "convert", str(listed), "--media", str(media), "--out", str(tmp_path / "o")]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code and "--resume" in done.stderr


def test_shards_that_there_are_not_are_said(tmp_path, media):
    rows = [{"image": name, "conversations": TALK} for name in ("a/1.png", "lost.png", "a/1.png")]
    report, _ = sources.said(rows, tmp_path, media=[media], per_shard=1)
    assert sorted(sources.shards(tmp_path / "out")) == ["00000.tar", "00002.tar"] and report.empty == ["00001.tar"]
    file = tmp_path / "records.json"
    again, _ = sources.made(file, tmp_path / "out", media=[media], per_shard=1, resume=True)
    assert again.empty == report.empty and any("no 00001.tar" in line for line in summary(again, "out"))


def test_the_hint_of_a_refused_record_is_that_of_all(tmp_path, media):
    with pytest.raises(UsageError) as told:
        sources.said([{"image": "a/1.png", "bbox": [1, 2, 3, 4], "conversations": TALK}], tmp_path, media=[media])
    assert "--ignore" in told.value.hint and "convert.jsonl" in told.value.hint


def test_the_size_of_a_shard_is_fitted(tmp_path, media, monkeypatch):
    from mmtune.data.convert import run

    monkeypatch.setattr(run, "SHARD", 3 * (media / "v_1.mp4").stat().st_size)
    report, _ = sources.said([{"video": "v_1.mp4", "caption": "x"}] * 6, tmp_path, media=[media])
    assert report.shards == 3


def test_many_bad_records_in_front_are_not_the_end(tmp_path):
    file = tmp_path / "list.jsonl"
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]
    file.write_text("\n".join(['{"broken": '] * 150 + ['{"id": 1}'] * 80 + [json.dumps({"conversations": talk})]))
    report, refused = sources.made(file, tmp_path / "out")
    assert report.written == 1 and [line["line"] for line in refused] == list(range(1, 231))
