"""MODEL.DEVICE where a run starts: the GPU that is taken, and those that are refused."""

import pytest
import torch

from smca.config import ConfigError
from smca.engine.prepare import prepare

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
V100, T4, A100, L40, H100 = (7, 0), (7, 5), (8, 0), (8, 9), (9, 0)


@pytest.fixture
def run_on(config, tmp_path, monkeypatch):
    """``run_on([(7, 0), ...], "cuda:1", processes=2)``: the config of a run on a machine with GPUs
    of these capabilities, and what was made the current one."""
    taken = []

    def start(gpus, device="cuda", *, processes=1, built_for=WHEEL):
        fakes = {
            "is_available": lambda: bool(gpus),
            "device_count": lambda: len(gpus),
            "get_arch_list": lambda: built_for,
            "get_device_capability": lambda gpu: gpus[gpu],
            "get_device_name": lambda gpu: f"Model {gpu}",
            "set_device": taken.append,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        opts = ("MODEL.DEVICE", device, "SOLVER.IMS_PER_BATCH", 4, "OUTPUT_DIR", str(tmp_path))
        return prepare(config("smca_R50_50ep", *opts), processes).MODEL.DEVICE, taken

    return start


def test_a_gpu_of_a_number_becomes_the_current_one(run_on):
    assert run_on([A100, A100], "cuda") == ("cuda", [])
    assert run_on([A100, A100], "cuda", processes=2) == ("cuda", [])
    assert run_on([A100, A100], "cuda:1") == ("cuda:1", [1])


def test_without_a_gpu_the_cpu_is_used(run_on, capsys):
    for device in ("cuda", "cuda:1"):
        assert run_on([], device) == ("cpu", [])
        assert "there is no GPU, the CPU is used" in capsys.readouterr().err


def test_a_gpu_that_is_not_there_is_refused(run_on):
    with pytest.raises(ConfigError, match=r"MODEL\.DEVICE is 'cuda:2'; there are 2 GPUs here"):
        run_on([A100, A100], "cuda:2")


@pytest.mark.parametrize("gpus", [[], [A100, A100]])
def test_a_number_is_refused_for_many_processes(run_on, gpus):
    with pytest.raises(ConfigError) as error:
        run_on(gpus, "cuda:1", processes=2)
    assert str(error.value) == (
        "MODEL.DEVICE is 'cuda:1'; it must be 'cuda' for 2 processes, which have a GPU each: the "
        "environment's CUDA_VISIBLE_DEVICES chooses which"
    )


def test_a_gpu_that_torch_has_no_code_for_is_refused(run_on):
    with pytest.raises(ConfigError) as error:
        run_on([V100])
    message = str(error.value)
    assert "\n" not in message
    assert f"torch {torch.__version__} has no code for the GPU 0, Model 0" in message
    assert "compute capability 7.0, only sm_75, sm_80" in message
    assert "those for CUDA 12.6 by the command of https://pytorch.org" in message
    # An old torch on a new GPU: any newer one will do.
    with pytest.raises(ConfigError, match="then install those by the command"):
        run_on([(12, 0)], built_for=["sm_80", "sm_90"])


def test_only_gpus_that_are_used_count(run_on):
    assert run_on([A100, V100])[0] == "cuda"
    for options in ({"processes": 2}, {"device": "cuda:1"}):
        with pytest.raises(ConfigError, match="the GPU 1, Model 1"):
            run_on([A100, V100], **options)


@pytest.mark.parametrize(
    ("gpu", "built_for", "runs"),
    [
        *((gpu, WHEEL, True) for gpu in (T4, A100, (8, 6), L40, H100, (10, 3), (12, 1))),
        *((gpu, WHEEL, False) for gpu in (V100, (7, 2), (6, 1), (11, 0))),
        *((gpu, ["sm_86"], gpu == L40) for gpu in (A100, L40, H100)),
        *((gpu, ["sm_70", "compute_80"], gpu != (6, 1)) for gpu in (V100, T4, L40, H100, (6, 1))),
        *((gpu, ["sm_90a", "compute_90a"], gpu == H100) for gpu in (A100, H100, (10, 0))),
        *((gpu, ["sm_100f"], gpu[0] == 10) for gpu in (H100, (10, 0), (10, 3), (12, 0))),
        *((gpu, names, True) for gpu in (V100,) for names in ([], ["gfx90a", "gfx942"])),
    ],
)
def test_code_runs_on_what_it_was_built_for_and_what_is_like_it(run_on, gpu, built_for, runs):
    if runs:
        assert run_on([gpu], built_for=built_for)[0] == "cuda"
    else:
        with pytest.raises(ConfigError, match="has no code for the GPU 0"):
            run_on([gpu], built_for=built_for)
