"""Tiles and where their tokens belong; sizes are worked out by hand from LLaVA 1.6's description."""

from __future__ import annotations

import pytest
import torch

from mmtune import config, registry
from mmtune.connectors.anyres import Anyres as Connector
from mmtune.connectors.anyres import Config as ConnectorConfig
from mmtune.encoders.anyres import Anyres, Config, best_grid, border, fitted
from mmtune.errors import ConfigError, MediaError
from mmtune.types import Features, Media
from tests.encoders.tiny import hf_folder

GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((300, 600), (336, 672)),
        ((600, 300), (672, 336)),
        ((700, 700), (672, 672)),
        ((200, 1000), (336, 1008)),
        ((100, 100), (336, 672)),  # all show all of it: the first of those with least waste
        ((480, 640), (672, 672)),
    ],
)
def test_the_grid_that_shows_most(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert best_grid(size, GRIDS) == grid


def test_a_picture_in_its_grid() -> None:
    assert fitted((480, 640), (672, 672)) == (504, 672)
    assert fitted((640, 480), (672, 672)) == (672, 504)
    assert fitted((100, 333), (336, 672)) == (202, 672)
    # 48 lines of which 36 show the picture: 6 above and below
    assert border((480, 640), (48, 48)) == (6, 0)
    assert border((640, 480), (48, 48)) == (0, 6)
    assert border((500, 500), (48, 48)) == (0, 0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Anyres:
    folder = hf_folder(tmp_path_factory.mktemp("tower") / "weights")
    inner = {"name": "hf_vision", "weights": str(folder)}
    made = Anyres(Config(encoder=inner, grids=((24, 48), (48, 24), (48, 48))))
    made.load_weights()
    return made


def picture(height: int, width: int) -> Media:
    g = torch.Generator().manual_seed(0)
    return Media("image", torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=g))


def test_the_whole_and_its_tiles(encoder: Anyres) -> None:
    """48 x 48 holds its grid exactly, so each tile is a quarter of the picture, and no token shows border."""
    one = picture(48, 48)
    item = encoder.prepare(one)
    assert item.shape == (5, 3 * 24 * 24 + 2 * 9)
    pixels = item[:, : 3 * 24 * 24].view(5, 3, 24, 24)
    mean, std = (torch.tensor([x] * 3).view(3, 1, 1) * 255 for x in (0.5, 0.25))
    whole = (one.data[0].float() - mean) / std
    for tile, (top, left) in enumerate(((0, 0), (0, 24), (24, 0), (24, 24)), start=1):
        torch.testing.assert_close(pixels[tile], whole[:, top : top + 24, left : left + 24])
    marks = encoder.marks(item)
    assert (marks[0] == 0).all()
    assert marks[2].tolist() == [[line, column] for line in (1, 2, 3) for column in (4, 5, 6)]


def test_places_and_their_order(encoder: Anyres) -> None:
    """A wide picture in 24 x 48: three lines of six columns. Each place can be told by its token's own number."""
    item = encoder.prepare(picture(20, 40))
    marks = encoder.marks(item)
    assert marks.shape == (3, 9, 2)
    numbers = torch.arange(27.0).view(1, 3, 9, 1) + 1
    tokens = torch.cat([numbers, marks[None]], dim=-1)
    shape = encoder.shape
    connector = Connector(ConnectorConfig(depth=1), type(shape)(width=3, tokens=9, frames=5), 1)
    with torch.no_grad():
        connector.layers[0].weight.fill_(1)
        connector.layers[0].bias.zero_()
        connector.newline.fill_(-1)
        out = connector(Features(tokens, torch.ones(1, 3, dtype=torch.bool)))
    left, right = [10, 11, 12], [19, 20, 21]
    lines = [number + 3 * line for line in range(3) for number in [*left, *right, -1 - 3 * line]]
    assert out.tokens[0, :, 0].tolist() == [*range(1, 10), *lines]
    assert (
        connector.num_tokens(item, encoder) == connector.num_tokens(tokens[0], encoder) == out.tokens.shape[1] == 9 + 21
    )


def test_border_takes_no_place(encoder: Anyres) -> None:
    """A square of 48 x 30 in 48 x 48: six columns, of which one on each side shows border."""
    item = encoder.prepare(picture(48, 30))
    marks = encoder.marks(item)
    shown = marks[1:].flatten(0, 1)
    assert int((shown[:, 0] > 0).sum()) == 6 * 4
    assert set(shown[shown[:, 0] > 0][:, 1].tolist()) == {1, 2, 3, 4}


def test_marks_survive_half_precision(encoder: Anyres) -> None:
    marks = encoder.marks(encoder.prepare(picture(48, 30)))
    for kind in (torch.float16, torch.bfloat16):
        assert torch.equal(marks.to(kind).float(), marks)


def test_items_of_several_sizes_side_by_side(encoder: Anyres) -> None:
    connector = Connector(ConnectorConfig(), encoder.shape, 8).eval()
    items = [encoder.prepare(picture(48, 48)), encoder.prepare(picture(20, 40))]
    x = torch.zeros(2, 5, items[0].shape[1])
    frames = torch.zeros(2, 5, dtype=torch.bool)
    for row, item in enumerate(items):
        x[row, : len(item)], frames[row, : len(item)] = item, True
    with torch.no_grad():
        both = connector(encoder(x, frames))
        for row, item in enumerate(items):
            alone = connector(encoder(item[None], torch.ones(1, len(item), dtype=torch.bool)))
            assert int(both.mask[row].sum()) == connector.num_tokens(item, encoder)
            torch.testing.assert_close(both.tokens[row][both.mask[row]], alone.tokens[0])


def test_only_pictures(encoder: Anyres) -> None:
    video = Media("video", torch.zeros(2, 3, 24, 24, dtype=torch.uint8), torch.zeros(2, dtype=torch.float64))
    with pytest.raises(MediaError, match="anyres"):
        encoder.prepare(video)


@pytest.mark.parametrize(("change", "word"), [({"grids": [[24, 50]]}, "multiples of 24"), ({"weights": "x"}, "inner")])
def test_settings_that_do_not_fit(change: dict, word: str, tmp_path) -> None:
    inner = {"name": "hf_vision", "weights": str(hf_folder(tmp_path / "weights"))}

    class Holder(config.Config):
        encoder: config.entry("encoders")
        """The one under test."""

    tree = {"encoder": {"name": "anyres", "encoder": inner, "grids": [[24, 48]], **change}}
    with pytest.raises(ConfigError, match=word):
        settings = config.validate(Holder, tree).encoder
        registry.find("encoders", "anyres")(settings)
