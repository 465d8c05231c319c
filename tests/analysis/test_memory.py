"""The peak of a process that takes a known amount."""

import pytest

# A host whose model takes 200 MB to infer and 300 MB for its loss, in a program that has 800 MB.
PROGRAM = """
import torch
from smca import get_cfg
from smca.analysis.host import Host, Subject
from smca.analysis.memory import peak_memory, prepare_pass

def use(megabytes):
    return torch.ones(megabytes << 18)

def build(cfg, device):
    model = torch.nn.Linear(1, 1)
    def infer(images):
        return use(200 if images.shape[-1] == 99 else 1)
    def loss(images):
        return model(use(300)[:, None][:1]).sum()
    return Subject(model=model, infer=infer, loss=loss)

def prepare(megabytes):
    use(600)
    return lambda: use(megabytes)

if __name__ == "__main__":
    held = use(800)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    host = Host(name="stub", read=None, build=build)
    for training in (False, True):
        print(peak_memory(prepare_pass, host, cfg, (9, 99), 1, training))
    print(peak_memory(prepare, 250))
"""


@pytest.mark.slow
def test_peak_is_what_the_pass_takes(start_program, tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    infer, loss, work = map(int, start_program(script=script).done().split()[-3:])
    assert infer / 2**20 == pytest.approx(200, abs=20)
    assert loss / 2**20 == pytest.approx(300, abs=20)
    # What was needed to prepare it, and is free again, hides nothing of it.
    assert work / 2**20 == pytest.approx(250, abs=20)
