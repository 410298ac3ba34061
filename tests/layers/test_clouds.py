"""Views, sampling and projection of point clouds, against numbers worked out by hand or by a plainer way."""

import math

import numpy as np
import pytest
import torch

from mmtune.layers import clouds


def test_rotations_turn_and_keep_lengths():
    angles = torch.tensor([[0.3, -0.9], [2.5, 0.4], [0.0, 0.0]], dtype=torch.float64)
    found = clouds.rotations(angles)
    same = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(found @ found.transpose(1, 2), same.expand(3, 3, 3))
    torch.testing.assert_close(torch.linalg.det(found), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(found[2], same)
    # theta alone: about z, against the clock seen from below
    turned = clouds.rotations(torch.tensor([math.pi / 2, 0.0], dtype=torch.float64)) @ same[0]
    torch.testing.assert_close(turned, torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64), atol=1e-12, rtol=0)


def test_the_front_view_has_x_to_the_right_and_y_up():
    """A point to the right, one above, one in front: their rows and columns, and who is nearer."""
    columns, signs = clouds.AXES["y"]
    right_up_front = torch.eye(3)[:, list(columns)] * torch.tensor(signs)
    seen = right_up_front @ clouds.rotations(clouds.radians(clouds.FRONT))[0].float().T
    torch.testing.assert_close(seen, torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]]), atol=1e-6, rtol=0)
    # the same object with z up in the file: x right, y away, z up
    columns, signs = clouds.AXES["z"]
    right_up_front = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])[:, list(columns)] * torch.tensor(signs)
    again = right_up_front @ clouds.rotations(clouds.radians(clouds.FRONT))[0].float().T
    torch.testing.assert_close(again, seen)


def test_published_views():
    assert len(clouds.VALIDATION) == 8 and len(clouds.TEST) == 40
    assert clouds.VALIDATION[0] == (0.1, -0.35)
    np.testing.assert_allclose(clouds.TEST[:2] + clouds.TEST[-1:], [(0, -0.4), (0.2, -0.4), (1.8, -0.2)])


def by_hand(points, count, skip):
    chosen = [0]
    while len(chosen) < count:
        far = [
            -1 if skip and (p**2).sum() <= skip else min(((p - points[c]) ** 2).sum() for c in chosen) for p in points
        ]
        chosen.append(int(np.argmax(far)))
    return chosen


@pytest.mark.parametrize("skip", [0.0, 0.05])
def test_farthest_points(skip):
    points = np.random.default_rng(3).normal(size=(60, 3)).astype(np.float32)
    points[[4, 9]] *= 0.01
    found = clouds.farthest(points, 30, skip).tolist()
    assert found == by_hand(points.astype(np.float64), 30, skip)
    assert not (skip and {4, 9} & {*found})
    assert sorted(clouds.farthest(points, 60).tolist()) == list(range(60))


def test_projection_fills_the_longer_side_and_keeps_the_ratio():
    cloud = torch.tensor([[[0.0, 0, 5], [4, 2, -3], [2, 1, 0]]])
    found = clouds.project(cloud, 11)
    assert found.size.tolist() == [0.5]
    assert found.cell.tolist() == [[[0, 0], [8, 4], [4, 2]]]
    rows, columns = found.index[..., 0], found.index[..., 1]
    assert (rows.min(), rows.max()) == (0, 10)
    assert (columns.min(), columns.max()) == (2, 8)
    middle = found.index[0, :, 4]
    assert middle.tolist() == [[1, 3], [9, 7], [5, 5]]
    assert found.index[0, 2].tolist() == [[5 + r, 5 + c] for r, c in clouds.NEIGHBOURS]


def test_projection_stays_inside_whatever_the_cloud():
    cloud = torch.randn(40, 30, 3) * torch.logspace(-3, 3, 40)[:, None, None]
    cloud[7] = 1.0
    for side in (11, 28, 192):
        found = clouds.project(cloud, side)
        assert found.index.min() >= 0 and found.index.max() <= side - 1
        assert torch.isfinite(found.offset).all()


def test_a_fixed_frame_keeps_place_and_size():
    cloud = torch.tensor([[[-1.0, -1, 0], [0.99, 0.99, 0], [0, 0, 0], [3, 0, 0]]])
    index, inside = clouds.to_pixels(cloud, 10, 1.0)
    assert index[0, :3, 4].tolist() == [[0, 0], [9, 9], [5, 5]]
    assert inside.sum(-1).tolist() == [[4, 4, 9, 0]]


def test_paint_shows_the_nearest_point():
    cloud = torch.tensor([[[0.0, 0, 0.2], [0, 0, 0.7], [-0.9, -0.9, 0.1]]])
    colours = torch.tensor([[[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]])
    index, inside = clouds.to_pixels(cloud, 10, 1.0)
    picture = clouds.paint(cloud[..., 2], colours, index, inside, 10, (0.5, 0.5, 0.5))
    assert picture.shape == (1, 3, 10, 10)
    assert picture[0, :, 5, 5].tolist() == [0, 1, 0]
    assert picture[0, :, 4, 6].tolist() == [0, 1, 0]
    assert picture[0, :, 0, 0].tolist() == [0, 0, 1]
    assert picture[0, :, 9, 0].tolist() == [0.5] * 3


def canvas(**sizes):
    torch.manual_seed(0)
    made = clouds.Canvas(**{"near": 4, "inner": 4, "width": 8, "size": 32, **sizes}).eval()
    for norm in (module for module in made.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return made


def test_the_published_size():
    assert sum(p.numel() for p in clouds.Canvas().parameters()) == 83_683


def test_features_look_at_the_nearest_points_alone():
    made = canvas()
    points = torch.randn(2, 20, 3)
    out = made.features(points)
    assert out.shape == (2, 20, 8)
    order = torch.randperm(20)
    torch.testing.assert_close(made.features(points[:, order]), out[:, order], rtol=1e-4, atol=1e-5)
    # one neighbour is the point itself: no differences are left
    lonely = canvas(near=1)
    edges = []
    lonely.graph_layer.register_forward_pre_hook(lambda module, given: edges.append(given[0]))
    lonely.features(points)
    assert torch.equal(edges[0][:, :4], torch.zeros(2, 4, 20, 1))


def test_spread_sums_and_pads():
    made = canvas()
    features = torch.ones(1, 2, 8)
    cloud = torch.tensor([[[0.0, 0, 0], [1, 0.1, 0]]])
    index = clouds.project(cloud, 28).index
    out = made.spread(features, index, 28)
    assert out.shape == (1, 32, 32, 8)
    assert out.sum() == 2 * 9 * 8
    assert out[:, :2].abs().sum() == 0 and out[:, :, -2:].abs().sum() == 0
    twice = made.spread(features, index[:, :1].expand(-1, 2, -1, -1), 28)
    assert twice.max() == 2


def test_gradients_reach_every_parameter():
    made = canvas()
    points = torch.randn(2, 30, 3)
    made(points, clouds.project(points, 28).index, 28).square().sum().backward()
    still = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # batch norm takes a constant out again only while it uses the statistics of the batch
    assert still == []
