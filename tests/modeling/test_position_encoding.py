import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from smca.modeling.position_encoding import sine_positions

maps = st.tuples(st.integers(1, 100), st.integers(1, 168))
image_sizes = st.lists(st.tuples(*[st.integers(1, 70)] * 2), min_size=1, max_size=3)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_positions_are_detrs(dtype, error):
    channels, shape, cells = 8, (3, 5), [(3, 5), (2, 4)]
    positions = sine_positions(cells, shape, channels, torch.device("cpu"), dtype=dtype)
    positions = positions.view(2, *shape, channels)
    for b, (rows, columns) in enumerate(cells):
        for i in range(rows):
            for j in range(columns):
                expected = []
                for count, valid in ((i + 1, rows), (j + 1, columns)):  # y before x
                    angle = count / (valid + 1e-6) * 2 * math.pi
                    for k in range(channels // 4):
                        wavelength = 10000 ** (2 * k / (channels // 2))
                        expected += [math.sin(angle / wavelength), math.cos(angle / wavelength)]
                wanted = torch.tensor(expected, dtype=dtype)
                assert_close(positions[b, i, j], wanted, atol=error, rtol=10 * error)


def test_images_of_one_size_share_positions():
    assert len(sine_positions([(2, 3)] * 4, (2, 3), 8, torch.device("cpu"))) == 1


@settings(max_examples=100)
@given(st.integers(1, 16), maps, image_sizes, st.sampled_from([0.0, -0.5]))
def test_positions_are_constants_within_one(quarter, shape, sizes, offset):
    cells = [(min(h, shape[0]), min(w, shape[1])) for h, w in sizes]
    channels = 4 * quarter
    positions = sine_positions(cells, shape, channels, torch.device("cpu"), offset=offset)
    assert positions.shape == (
        1 if len(set(cells)) == 1 else len(cells),
        math.prod(shape),
        channels,
    )
    assert not positions.requires_grad and (positions.abs() <= 1).all()
    # Sine and cosine of each angle are next to each other.
    squares = positions.square().unflatten(-1, (-1, 2)).sum(-1)
    assert_close(squares, torch.ones_like(squares))
    if len(positions) > 1:
        for position, cell in zip(positions, cells, strict=True):
            [alone] = sine_positions([cell], shape, channels, torch.device("cpu"), offset=offset)
            assert_close(position, alone, rtol=0, atol=0)
