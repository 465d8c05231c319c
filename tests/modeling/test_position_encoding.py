import math

import pytest
import torch
from torch.testing import assert_close

from smca.modeling.position_encoding import sine_positions


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
