import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from smca.engine import parallel
from smca.engine.parallel import data_parallel
from smca.modeling.detector import build_detector


@pytest.fixture
def group(tmp_path, monkeypatch):
    """A process group of this process alone, which believes that there is another."""
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("norm", "sent"), [("BN", True), ("FrozenBN", False), ("GN", False)])
def test_only_what_training_changes_is_sent_around(group, tiny_config, norm, sent):
    detector = build_detector(tiny_config("MODEL.RESNETS.NORM", norm))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = data_parallel(detector)
    assert model.will_sync_module_buffers() == sent


def test_gradients_are_held_once(group):
    layer = torch.nn.Linear(3, 3)
    model = data_parallel(layer)
    assert model.gradient_as_bucket_view
    for _ in range(2):
        layer.zero_grad()
        model(torch.ones(2, 3)).sum().backward()
        torch.testing.assert_close(layer.weight.grad, torch.full((3, 3), 2.0))


def test_a_gpu_is_named(monkeypatch):
    asked = []

    class Parallel(DistributedDataParallel):
        def __init__(self, module, **options):
            torch.nn.Module.__init__(self)
            asked.append(options["device_ids"])

    monkeypatch.setattr(parallel, "DistributedDataParallel", Parallel)
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    for device in (torch.device("cuda", 1), torch.device("cpu")):
        layer = torch.nn.Linear(3, 3)
        layer.parameters = lambda device=device: iter([SimpleNamespace(device=device)])
        data_parallel(layer)
    assert asked == [[1], None]


def test_one_worker_needs_no_wrapper():
    layer = torch.nn.Linear(3, 3)
    assert data_parallel(layer) is layer
