"""Training the quickstart's model in mixed precision, beside training it in float32."""

import json
from pathlib import Path

import pytest
import torch

from smca.data.shapes import write_shapes_dataset
from smca.engine.step import NO_HALF

ROOT = Path(__file__).parents[2]
ITERATIONS = 200
needs_half_precision = pytest.mark.skipif(
    not torch.cuda.is_available() and torch.backends.cpu.get_cpu_capability() in NO_HALF,
    reason="this CPU takes seconds for a step in half precision",
)


@pytest.mark.slow
@needs_half_precision
def test_the_loss_falls_as_in_float32(train_net, tmp_path):
    """In bfloat16 on a CPU, in float16 on CUDA."""
    folder = tmp_path / "shapes"
    shapes = write_shapes_dataset(folder, num_train=800, num_val=4, image_size=96)
    datasets = [[name, *files] for name, files in shapes.items()]
    curves = []
    for amp in (False, True):
        output = tmp_path / f"amp_{amp}"
        train_net(
            *("--engine", "native", "--config-file", ROOT / "configs/quickstart.yaml"),
            *("MODEL.DEVICE", "cuda" if torch.cuda.is_available() else "cpu"),
            *("DATASETS.COCO_FORMAT", datasets, "DATASETS.TRAIN", ("train",)),
            *("DATASETS.TEST", ("val",), "TEST.EVAL_PERIOD", 0, "DATALOADER.NUM_WORKERS", 0),
            *("SOLVER.MAX_ITER", ITERATIONS, "SOLVER.STEPS", (), "SOLVER.AMP.ENABLED", amp),
            *("SOLVER.CHECKPOINT_PERIOD", ITERATIONS, "OUTPUT_DIR", output),
        )
        lines = map(json.loads, (output / "metrics.json").read_text().splitlines())
        curves.append([line["total_loss"] for line in lines if "total_loss" in line])
    exact, mixed = map(torch.tensor, curves)
    assert len(exact) == len(mixed) >= 10
    assert exact[-1] < 0.7 * exact[0]
    assert not torch.equal(exact, mixed)
    assert ((mixed - exact).abs() / exact).max() < 0.1
