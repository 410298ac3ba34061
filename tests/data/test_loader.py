import itertools
import operator
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from mmtune import registry
from mmtune.data.ledger import Ledger, read
from mmtune.data.loader import Loader, Source, Stream
from mmtune.data.pack import BatchSpec
from mmtune.data.pool import Pool
from mmtune.errors import ConfigError, DataError, MmtuneError, UsageError
from tests.data import tars

LLAVA = registry.find("data/formats", "llava")
PLAN = BatchSpec(rows=4, length=24, accumulate=2)


def answers(key):
    """Answers of many lengths; every ninth sample is bad."""
    number = int(key)
    said = "bad" if number % 9 == 4 else "x" * (3 + number * 7 % 18)
    turns = [{"from": "human", "value": "what"}, {"from": "gpt", "value": said}]
    return {"conversations": turns}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loader")
    tars.shards(folder / "talk", 5, 8, more=answers)
    tars.shards(folder / "tell", 3, 7, first=500, more=answers)
    return folder


def loader(folders, workers=0, seed=0, spec=PLAN, names=("talk", "tell"), without=(), processor=None, **options):
    source = LLAVA(LLAVA.Config())
    shares = {"talk": 2, "tell": 1}
    streams = [
        Stream(
            name,
            [Source((folders / name,), source)],
            processor or tars.Letters(),
            shares[name],
            without=without,
            window=2,
            augment=options.pop("augment", False),
        )
        for name in names
    ]
    return Loader(streams, spec, seed, workers, options.pop("ledger", None), **options)


def take(feed, count, first=0):
    with_close = feed.steps(first)
    steps = list(itertools.islice(with_close, count))
    with_close.close()
    return steps


def same(left, right):
    assert len(left) == len(right)
    for (name, batches), (other, others) in zip(left, right, strict=True):
        assert name == other and len(batches) == len(others)
        for one, two in zip(batches, others, strict=True):
            assert one.ids == two.ids
            for field in ("tokens", "labels", "positions", "segments"):
                assert torch.equal(getattr(one, field), getattr(two, field)), field
            for field in ("media", "frame_mask", "slots"):
                mine, theirs = getattr(one, field), getattr(two, field)
                assert mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine), field
    return True


def ids(steps):
    return [name for _, batches in steps for batch in batches for name in batch.ids]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(folders, workers):
    same(take(loader(folders), 14), take(loader(folders, workers=workers), 14))


def test_steps_are_full_and_alternate_by_share(folders):
    steps = take(loader(folders), 12)
    assert Counter(name for name, _ in steps) == {"talk": 8, "tell": 4}
    assert all(sum(batch.tokens.shape[0] for batch in batches) <= 8 for _, batches in steps)
    fill = [float((b.segments > 0).float().mean()) for _, batches in steps for b in batches]
    assert sum(fill) / len(fill) > 0.8
    assert all(len(batches) == 2 for _, batches in steps)


@pytest.mark.parametrize("cut", [1, 4, 9])
def test_resume_goes_on_as_if_nothing_had_happened(folders, cut):
    straight = take(loader(folders), 16)
    first = loader(folders, workers=2)
    begun = take(first, cut)
    again = loader(folders, workers=1)
    again.restore(first.positions(cut))
    same(straight, begun + take(again, 16 - cut, cut))


def test_ten_resumes_with_another_layout_each_time(folders):
    straight = take(loader(folders), 20)
    steps, positions = [], None
    for part in range(10):
        feed = loader(folders, workers=part % 3)
        if positions:
            feed.restore(positions)
        steps += take(feed, 2, 2 * part)
        positions = feed.positions(2 * part + 2)
    same(straight, steps)


def test_workers_ahead_do_not_move_the_position(folders):
    feed = loader(folders, workers=2)
    steps = feed.steps()
    next(steps), next(steps)
    time.sleep(0.2)
    assert feed.positions(2) == loader_positions(folders, 2)
    steps.close()


def loader_positions(folders, count):
    feed = loader(folders)
    take(feed, count)
    return feed.positions(count)


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_the_same_global_batches(folders, world):
    whole = take(loader(folders), 8)
    parts = [take(loader(folders, rank=rank, world=world), 8) for rank in range(world)]
    for step, (name, batches) in enumerate(whole):
        for micro, batch in enumerate(batches):
            mine = [parts[rank][step][1][micro] for rank in range(world)]
            assert all(parts[rank][step][0] == name for rank in range(world))
            for row in range(batch.tokens.shape[0]):
                assert torch.equal(batch.tokens[row], mine[row % world].tokens[row // world])
                assert torch.equal(batch.segments[row], mine[row % world].segments[row // world])
            real = [name for part in mine for name in part.ids]
            assert sorted(real) == sorted(batch.ids)


def test_every_sample_is_trained_or_named(folders, tmp_path):
    feed = loader(folders, ledger=Ledger(tmp_path / "skipped.jsonl"), names=("talk",), workers=2)
    corpus = feed.streams["talk"].corpus
    every = [corpus.id(key) for key in corpus.samples()]
    trained, steps = [], feed.steps()
    for step in itertools.count():
        trained += ids([next(steps)])
        place = feed.positions(step + 1)["streams"]["talk"]
        if place["epoch"] >= 3:
            break
    steps.close()
    skipped = [row["id"] for row in read(tmp_path / "skipped.jsonl")]
    seen = Counter(trained) + Counter(skipped)
    complete = place["epoch"]
    assert all(complete <= seen[name] <= complete + 1 for name in every) and set(seen) == set(every)
    assert sum(seen.values()) == complete * len(every) + place["position"]
    assert {name.rpartition("/")[2] for name in skipped} == {f"{n:06d}" for n in range(40) if n % 9 == 4}
    assert not set(skipped) & set(trained)


def test_a_bad_sample_changes_nothing_else(folders):
    bad = [f"{shard:05d}/{number:06d}" for shard in range(5) for number in range(40) if number % 9 == 4]
    bad += [f"{shard:05d}/{number:06d}" for shard in range(3) for number in range(500, 521) if number % 9 == 4]
    with_bad = take(loader(folders, augment=True), 25)
    without = take(loader(folders, without=bad, augment=True), 25)
    same(with_bad, without)


def test_random_preparation_belongs_to_the_sample(folders):
    drawn = take(loader(folders, augment=True), 4)
    same(drawn, take(loader(folders, augment=True, workers=2), 4))
    assert not torch.equal(drawn[0][1][0].media["sight"], take(loader(folders), 1)[0][1][0].media["sight"])


def test_positions_are_plain_and_checked(folders):
    import json

    feed = loader(folders)
    take(feed, 3)
    assert json.loads(json.dumps(feed.positions(3))) == feed.positions(3)
    with pytest.raises(UsageError):
        feed.positions(7)
    with pytest.raises(UsageError, match="restore"):
        next(loader(folders).steps(5))
    with pytest.raises(UsageError):
        loader(folders, names=("talk",)).restore(feed.positions(3))


def test_ledger_of_a_resumed_run_equals_that_of_a_straight_one(folders, tmp_path):
    take(loader(folders, ledger=Ledger(tmp_path / "straight.jsonl")), 12)
    first = loader(folders, ledger=Ledger(tmp_path / "cut.jsonl"))
    take(first, 9)  # three steps more than were saved
    second = loader(folders, ledger=Ledger(tmp_path / "cut.jsonl"))
    second.restore(first.positions(6))
    take(second, 6, 6)
    assert list(read(tmp_path / "cut.jsonl")) == list(read(tmp_path / "straight.jsonl")) != []


def test_data_that_is_all_bad_stops(tmp_path):
    tars.shards(tmp_path / "talk", 2, 5, more=lambda key: {"conversations": answers("000004")["conversations"]})
    for workers in (0, 2):
        with pytest.raises(DataError, match="in a row"):
            take(loader(tmp_path, names=("talk",), workers=workers), 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_too_large_a_share_of_bad_data_stops_with_a_summary(tmp_path, workers):
    def some(key):
        said = "bad" if int(key) % 10 in (2, 5, 8) else "xxxxxx"
        return {"conversations": [{"from": "human", "value": "what"}, {"from": "gpt", "value": said}]}

    tars.shards(tmp_path / "talk", 10, 40, more=some)  # 30 % of 400
    found = read_of(tmp_path, Ledger(tmp_path / "strict.jsonl"), workers)
    with pytest.raises(DataError, match=r"6\d of 2\d\d samples could not be used \(unreadable_image 6\d\)") as caught:
        take(found, 100)
    assert "at most 25% bad samples" in str(caught.value) and "mmtune data check" in str(caught.value)
    assert len(list(read(tmp_path / "strict.jsonl"))) == found.ledger.counts["unreadable_image"]
    patient = read_of(tmp_path, Ledger(max_bad_fraction=0.35), workers)
    assert len(ids(take(patient, 40))) == 40 * 8 and patient.ledger.counts["unreadable_image"] > 100


def read_of(folder, ledger, workers):
    return loader(
        folder, names=("talk",), spec=BatchSpec(rows=4, length=14, examples=8), ledger=ledger, workers=workers
    )


def test_an_example_that_no_row_can_hold_is_skipped(tmp_path):
    said = {"000003": "x" * 40}

    def more(key):
        first = answers("000000")["conversations"][:1]
        return {"conversations": [*first, {"from": "gpt", "value": said.get(key, "xxx")}]}

    tars.shards(tmp_path / "talk", 1, 6, more=more)
    feed = loader(tmp_path, names=("talk",), spec=BatchSpec(rows=1, length=24, examples=5))
    trained = ids(take(feed, 1))
    assert len(trained) == 5 and feed.ledger.counts == {"too_long": 1}


class Killer(tars.Letters):
    """Dies at one sample."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def example(self, sample, answer=False, rng=None):
        if sample.id.endswith("000013"):
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("broken code")
        return super().example(sample)


def test_a_dead_worker_is_named_with_its_sample(folders):
    for workers in (1, 3):
        with pytest.raises(MmtuneError, match=r"killed by signal 9 before it was done with sample .*000013"):
            take(loader(folders, workers=workers, names=("talk",), processor=Killer("kill")), 12)


def test_a_fault_of_the_code_is_not_taken_for_bad_data(folders):
    with pytest.raises(RuntimeError, match="broken code"):
        take(loader(folders, names=("talk",), processor=Killer("raise")), 12)
    with pytest.raises(MmtuneError, match=r"in data worker \d, at sample .*000013 of stream talk: .*broken code"):
        take(loader(folders, workers=2, names=("talk",), processor=Killer("raise")), 12)


def test_workers_end_with_the_loader_and_hold_no_files(folders):
    def children():
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(os.getpid())], capture_output=True, text=True)
        return set(listed.stdout.split())

    take(loader(folders, workers=2), 1)
    before, files = children(), len(os.listdir("/proc/self/fd"))
    for _ in range(4):
        take(loader(folders, workers=2), 3)
    until(lambda: len(children() - before) <= 1)  # ps itself
    assert len(os.listdir("/proc/self/fd")) <= files + 8  # shards that are held open


def test_a_worker_that_stands_still_is_named_and_ends_with_the_loader(capsys):
    pool = Pool(lambda number: str(number).encode(), 2, lambda task: f"piece {task[0]}", patience=0.5)
    asked = [pool.put(number) for number in range(2)]
    assert [pool.get(number) for number in asked] == [b"0", b"1"]
    stopped = pool._processes[1].pid
    os.kill(stopped, signal.SIGSTOP)
    asked = [pool.put(number) for number in (2, 3)]
    assert pool.get(asked[0]) == b"2"
    threading.Timer(2, os.kill, (stopped, signal.SIGCONT)).start()
    assert pool.get(asked[1]) == b"3"
    said = capsys.readouterr().err
    assert f"waiting for data worker 1 (process {stopped}) for more than 0.5 s; it has piece 3" in said
    os.kill(stopped, signal.SIGSTOP)
    pool.close()
    assert not alive(stopped)


def test_signals_that_end_a_run_do_not_end_its_workers_before_it():
    pool = Pool(lambda number: str(number).encode(), 2)
    assert [pool.get(pool.put(piece)) for piece in (4, 5)] == [b"4", b"5"]  # both have begun
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        for process in pool._processes:
            os.kill(process.pid, number)
        assert [pool.get(pool.put(piece)) for piece in (6, 7)] == [b"6", b"7"]
    workers = [process.pid for process in pool._processes]
    pool.close()
    assert not any(alive(pid) for pid in workers)


def test_a_process_that_forgets_its_pool_ends():
    code = (
        "from mmtune.data.pool import Pool\n"
        "pool = Pool(lambda number: b'', 2)\n"
        "print(*[process.pid for process in pool._processes], flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    until(lambda: not any(alive(int(pid)) for pid in done.stdout.split()))


def slope(values):
    """Least squares, per step of one."""
    from_middle = [i - (len(values) - 1) / 2 for i in range(len(values))]
    return sum(map(operator.mul, from_middle, values)) / sum(i * i for i in from_middle)


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_and_files_stay_flat(folders, workers):
    """Some 5 000 samples, of which 500 warm up; workers are looked at, too."""
    feed = loader(folders, names=("talk",), workers=workers, spec=BatchSpec(rows=4, length=24, examples=8))
    steps, pages, files, taken = feed.steps(), [], [], 0
    for number, (_, batches) in enumerate(steps):
        taken += sum(len(batch.ids) for batch in batches)
        if number % 10 == 0 and taken > 500:
            processes = [os.getpid(), *(process.pid for process in feed.pool._processes)] if workers else [os.getpid()]
            pages.append(sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in processes))
            files.append(sum(len(os.listdir(f"/proc/{one}/fd")) for one in processes))
        if taken > 5000:
            break
    steps.close()
    assert max(files[5:]) <= max(files[:5])
    # in KB for each sample: a look every 80 samples
    assert slope(pages) * os.sysconf("SC_PAGE_SIZE") / 1024 / 80 < 1


def test_workers_end_when_the_main_process_is_killed(folders):
    code = f"""
import os, sys, time
sys.path.insert(0, {os.getcwd()!r})
from pathlib import Path
from tests.data.test_loader import loader
feed = loader(Path({str(folders)!r}), workers=2)
steps = feed.steps()
next(steps)
print(*[process.pid for process in feed.pool._processes], flush=True)
time.sleep(600)
"""
    main = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in main.stdout.readline().split()]
    assert len(workers) == 2
    main.kill()
    main.wait()
    main.stdout.close()
    until(lambda: not any(alive(pid) for pid in workers))


def until(true):
    """Wait for what is bound to come, on a busy machine too."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_examples_go_over_the_wire_unchanged():
    from mmtune.data import _serialize
    from mmtune.types import Example, Slot

    media = {"a": [torch.randn(3, 2), torch.zeros(0, 5, dtype=torch.uint8)], "b": [torch.randn(2).bfloat16()]}
    media["b"][0] = torch.ones(1, 3, dtype=torch.float16)
    one = Example("é", torch.arange(5), -torch.arange(5), (Slot("a", 1, 2, 0), Slot("b", 3, 0, 0)), media, "talk")
    two = _serialize.unpack(*_serialize.load(_serialize.dump(*_serialize.pack(one))))
    assert (one.id, one.slots, one.stream) == (two.id, two.slots, two.stream)
    assert torch.equal(one.tokens, two.tokens) and torch.equal(one.labels, two.labels)
    for branch in media:
        for mine, theirs in zip(media[branch], two.media[branch], strict=True):
            assert torch.equal(mine, theirs) and mine.dtype == theirs.dtype


def test_a_shard_in_two_sources_is_refused(folders):
    spelled = LLAVA(LLAVA.Config())
    with pytest.raises(ConfigError, match=r"stream talk: .*00001\.tar"):
        Stream(
            "talk",
            [Source((folders / "talk",), spelled), Source((folders / "talk" / "00001.tar",), spelled)],
            tars.Letters(),
        )
