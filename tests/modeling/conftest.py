"""What tests of the model share."""

import pytest
import torch


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def tolerance(request):
    """Run the test in both precisions: how far from its reference the model may be."""
    torch.set_default_dtype(request.param)
    single = request.param is torch.float32
    yield {"atol": 1e-5 if single else 1e-10, "rtol": 1e-4 if single else 1e-10}
    torch.set_default_dtype(torch.float32)
