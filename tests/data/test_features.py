import itertools

import numpy as np
import pytest
import torch

from mmtune import registry
from mmtune.data import features
from mmtune.data.features import FeatureCache
from mmtune.data.loader import Loader, Source, Stream
from mmtune.data.pack import BatchSpec
from mmtune.errors import DataError, MediaError, Reason, UsageError
from mmtune.media import Sampling
from mmtune.types import Features, MediaRef
from tests.data import tars

LLAVA = registry.find("data/formats", "llava")


class Config:
    name = "toy"


class Mean(torch.nn.Module):
    """Mean colour through a matrix: N = 2, E = 3. Counts what it is asked."""

    config, kinds, width, tokens_per_frame = Config(), ("image",), 3, 2

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.mix = torch.nn.Linear(3, 6)
        self.prepared = self.encoded = 0

    def sampling(self, kind):
        return Sampling()

    def prepare(self, media, rng=None):
        self.prepared += 1
        return media.data.float().mean((2, 3)) / 255

    def forward(self, x, frames):
        self.encoded += len(x)
        return Features(self.mix(x).unflatten(-1, (2, 3)), frames)

    def fingerprint(self):
        return f"{float(self.mix.weight.detach().sum()):.6f}" + "0" * 20


class Branch:
    kinds = ("image",)

    def __init__(self, seed=0):
        self.encoder = Mean(seed)


def png(colour):
    import io

    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (2, 2), colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def stream(tmp_path):
    members = []
    for number in range(12):
        talk = tars.talk(f"{number:03d}")
        # four colours, so that items repeat; and one file that is no picture
        members += [talk[0], (talk[1][0], png((number % 4 * 60, 9, 9)) if number != 7 else b"\x89PNG\r\n\x1a\nno")]
    tars.write(tmp_path / "a.tar", members)
    return Stream("talk", [Source((tmp_path / "a.tar",), LLAVA(LLAVA.Config()))], tars.Letters())


def refs(stream):
    return [ref for key in stream.corpus.samples() for ref in stream.sample(key).media]


@pytest.mark.parametrize("workers", [0, 2])
def test_warm_encodes_each_item_once_and_lookups_decode_nothing(stream, tmp_path, workers):
    branch, told = Branch(), []
    cache = FeatureCache(tmp_path / "cache", {"sight": branch})
    counts = cache.fill([stream], workers=workers, batch=3, progress=lambda done, total: told.append((done, total)))
    assert (counts["encoded"], counts["failed"]) == (4, 1) and told[-1] == (12, 12)
    assert branch.encoder.encoded == 4
    branch.encoder.prepared = 0
    direct = Branch().encoder
    for ref in refs(stream):
        if ref.origin.endswith("007.png"):
            with pytest.raises(MediaError) as caught:
                cache.get("sight", ref)
            assert caught.value.reason == Reason.unreadable_image
            continue
        found = cache.get("sight", ref)
        assert found.dtype == torch.float16 and found.shape == (1, 2, 3)
        from mmtune import media

        x = direct.prepare(media.load(ref, Sampling()))
        assert torch.allclose(found.float(), direct(x[None], torch.ones(1, 1).bool()).tokens[0], atol=1e-3)
    assert branch.encoder.prepared == 0 and branch.encoder.encoded == 4
    assert cache.get("sound", refs(stream)[0]) is None


def test_branches_with_the_same_encoder_share_what_is_kept(stream, tmp_path):
    """One folder, so one lock: two would wait for each other."""
    films = Branch()
    films.kinds = ("video",)
    cache = FeatureCache(tmp_path / "cache", {"picture": Branch(), "film": films})
    assert cache.feature_files["picture"] is cache.feature_files["film"]
    assert cache.fill([stream], batch=3)["encoded"] == 4
    assert cache.fill([stream]) == {"encoded": 0, "kept": 0, "failed": 0}, "both are marked"


def test_a_corpus_that_could_not_be_read_whole_is_walked_again(stream, tmp_path, monkeypatch):
    real, away = stream.corpus.record, [True]

    def record(key, *rest):
        if away and key.index < 4:
            raise DataError(Reason.truncated_shard, "the disk is away")
        return real(key, *rest)

    monkeypatch.setattr(stream.corpus, "record", record)
    cache = FeatureCache(tmp_path / "cache", {"sight": Branch()})
    assert cache.fill([stream])["encoded"] == 4  # the colours come again further on
    away.clear()
    assert cache.fill([stream])["kept"] == 12
    assert cache.fill([stream])["kept"] == 0


def test_kept_features_that_were_cut_are_made_again(stream, tmp_path):
    FeatureCache(tmp_path / "cache", {"sight": Branch()}).fill([stream])
    (file,) = tmp_path.glob("cache/*/features.bin")
    file.write_bytes(file.read_bytes()[:-4])
    assert FeatureCache(tmp_path / "cache", {"sight": Branch()}).fill([stream])["encoded"] == 1


def test_what_was_cut_off_is_never_taken_for_what_comes_to_lie_there(stream, tmp_path):
    cache = FeatureCache(tmp_path / "cache", {"sight": Branch()})
    cache.fill([stream])
    feature_file = cache.feature_files["sight"]
    held = {key: feature_file.read(key) for key in sorted(feature_file.offsets, key=feature_file.offsets.get)}
    first, _, third, fourth = held
    size = held[first].nbytes
    (file,) = tmp_path.glob("cache/*/features.bin")
    file.write_bytes(file.read_bytes()[: 2 * size - 4])  # the second is cut, third and fourth are gone
    feature_file.load()
    assert set(feature_file.offsets) == {first}
    with feature_file.writing() as writer:
        writer.put(fourth, held[fourth])
        writer.put(third, held[third])
    assert set(feature_file.offsets) == {first, third, fourth}
    assert all(np.array_equal(feature_file.read(key), held[key]) for key in feature_file.offsets)
    assert FeatureCache(tmp_path / "cache", {"sight": Branch()}).fill([stream])["encoded"] == 1


def test_a_second_run_reads_what_the_first_wrote(stream, tmp_path):
    FeatureCache(tmp_path / "cache", {"sight": Branch()}).fill([stream])
    branch = Branch()
    cache = FeatureCache(tmp_path / "cache", {"sight": branch})
    assert cache.fill([stream]) == {"encoded": 0, "kept": 0, "failed": 0}
    assert branch.encoder.prepared == 0
    assert cache.get("sight", refs(stream)[0]) is not None and branch.encoder.prepared == 0


def test_other_weights_have_other_features(stream, tmp_path):
    one = FeatureCache(tmp_path / "cache", {"sight": Branch(0)})
    one.fill([stream])
    two = FeatureCache(tmp_path / "cache", {"sight": Branch(1)})
    assert two.fill([stream])["encoded"] == 4
    ref = refs(stream)[0]
    assert not torch.equal(one.get("sight", ref), two.get("sight", ref))


def test_what_a_killed_writer_left_is_not_read(stream, tmp_path):
    cache = FeatureCache(tmp_path / "cache", {"sight": Branch()})
    cache.fill([stream])
    ref, feature_file = refs(stream)[0], cache.feature_files["sight"]
    good = cache.get("sight", ref)
    with (feature_file.folder / "features.bin").open("ab") as file:
        file.write(b"\x01" * 7)
    with (feature_file.folder / "index.jsonl").open("a") as file:
        file.write('{"key": "image:ff", "at": 24, "frames": 1}\n{"key": "im')
    again = FeatureCache(tmp_path / "cache", {"sight": Branch()})
    assert "image:ff" not in again.feature_files["sight"] and torch.equal(again.get("sight", ref), good)
    with again.feature_files["sight"].writing() as writer:
        writer.put("image:new", np.ones((2, 2, 3), dtype=np.float32))
    last = FeatureCache(tmp_path / "cache", {"sight": Branch()})
    assert last.feature_files["sight"].read("image:new").tolist() == np.ones((2, 2, 3)).tolist()
    assert torch.equal(last.get("sight", ref), good)


def test_what_is_missing_is_encoded_on_the_spot(stream, tmp_path):
    branch = Branch()
    cache = FeatureCache(tmp_path / "cache", {"sight": branch})
    found = cache.get("sight", refs(stream)[0])
    assert found.shape == (1, 2, 3) and branch.encoder.encoded == 1
    assert not (tmp_path / "cache").exists()
    elsewhere = MediaRef("image", tars.PNG, "x")
    branch.encoder.to("meta")
    with pytest.raises(UsageError, match=r"\bx\b.*sight"):
        cache.get("sight", elsewhere)


def test_numbers_that_half_precision_cannot_hold_are_refused(stream, tmp_path):
    branch = Branch()
    with torch.no_grad():
        branch.encoder.mix.bias.fill_(1e6)
    with pytest.raises(Exception, match="65504"):
        FeatureCache(tmp_path / "cache", {"sight": branch}).fill([stream])


class Cached(tars.Letters):
    """Takes its media from a cache."""

    def __init__(self, cache):
        super().__init__()
        self.cache = cache

    def example(self, sample, answer=False, rng=None):
        example = super().example(sample)
        example.media["sight"] = [self.cache.get("sight", ref) for ref in sample.media]
        return example


def test_loading_from_a_cache_is_the_same_with_workers(stream, tmp_path):
    cache = FeatureCache(tmp_path / "cache", {"sight": Branch()})
    cache.fill([stream])
    stream.processor = Cached(cache)
    batches = []
    for workers in (0, 2):
        feed = Loader([stream], BatchSpec(rows=2, length=16), workers=workers)
        steps = feed.steps()
        batches.append([batch for _, found in itertools.islice(steps, 4) for batch in found])
        steps.close()
        assert feed.ledger.counts["unreadable_image"] >= 1
    for one, two in zip(*batches, strict=True):
        assert one.ids == two.ids and torch.equal(one.media["sight"], two.media["sight"])
        assert one.media["sight"].dtype == torch.float16


def test_two_clips_of_one_file_are_two_items(tmp_path):
    from tests.media import make as made

    class Films(Mean):
        kinds = ("video",)

    branch = Branch()
    branch.encoder, branch.kinds = Films(), ("video",)
    cache, film = FeatureCache(tmp_path / "cache", {"sight": branch}), made.video(16, rate=8)
    parts = [
        MediaRef("video", film, "film"),
        MediaRef("video", film, "film", 0.0, 1.0),
        MediaRef("video", film, "film", 1.0),
    ]
    with cache.feature_files["sight"].writing() as writer:
        for number, ref in enumerate(parts):
            writer.put(features._key(ref), np.full((8, 2, 3), number, np.float16))
    assert [float(cache.get("sight", ref)[0, 0, 0]) for ref in parts] == [0, 1, 2]
