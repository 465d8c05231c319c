import pytest
import torch

from smca.modeling import build_detector


@pytest.fixture
def detector(tiny_config):
    torch.manual_seed(0)
    return build_detector(tiny_config())
