"""FCOS's assignment of objects to places, beside its rules one after the other."""

import math

import pytest
import torch

from smca.modeling.fcos import Grid

STRIDES = (8, 16, 32, 64, 128)
RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, math.inf))


def assigned_object(x, y, level, boxes):
    """The index of the object that FCOS assigns to a place, by its rules one after the other."""
    best, least = -1, math.inf
    for index, (x0, y0, x1, y1) in enumerate(boxes):
        center_x, center_y, reach = (x0 + x1) / 2, (y0 + y1) / 2, 1.5 * STRIDES[level]
        near = abs(x - center_x) < reach and abs(y - center_y) < reach
        inside = x0 < x < x1 and y0 < y < y1
        low, high = RANGES[level]
        area = (x1 - x0) * (y1 - y0)
        if near and inside and low <= max(x - x0, y - y0, x1 - x, y1 - y) <= high and area < least:
            best, least = index, area
    return best


@pytest.mark.parametrize("seed", range(5))
def test_places_have_the_objects_that_fcos_gives_them(seed):
    height, width = 320, 448
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.zeros(2, 1, -(-height // n), -(-width // n)) for n in STRIDES]
    grid = Grid.of(maps, STRIDES)
    # Whole numbers, so that edges go through places, and ranges end at distances.
    corners = torch.randint(0, 300, (2, 30, 2), generator=generator).float()
    sides = torch.randint(1, 260, (2, 30, 2), generator=generator).float()
    boxes = torch.cat((corners, corners + sides), dim=-1)
    boxes[1, 20:] = 0  # padding
    boxes[0, :3] = torch.tensor([[4.0, 4.0, 4 + 2 * n, 4 + 2 * n] for n in (64, 128, 60)])
    found = grid.assign(boxes)
    for image in range(2):
        objects = boxes[image, : 30 if image == 0 else 20].tolist()
        expected = [
            assigned_object(x, y, level, objects)
            for (x, y), level in zip(grid.points.tolist(), grid.levels.tolist(), strict=True)
        ]
        assert found[image].tolist() == expected
    assert (found >= 0).sum() > 20
    assert (grid.assign(boxes[:, :0]) == -1).all()
