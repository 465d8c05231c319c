"""What tests of all parts share: small configs and threads that do not fight for cores."""

import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import torch

from smca.data.shapes import write_shapes_dataset

ROOT = Path(__file__).parent.parent
# Programs that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# The same cases in every run. HYPOTHESIS_PROFILE=explore draws others each time, and keeps what
# fails in .hypothesis; --hypothesis-show-statistics counts them.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.getenv("HYPOTHESIS_PROFILE", "same"))

# A detector small enough to train for a few iterations in a test.
TINY = [
    *("MODEL.RESNETS.DEPTH", 10, "MODEL.RESNETS.STEM_TYPE", "basic", "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.SMCA.IN_FEATURES", ["res4", "res5"], "MODEL.SMCA.NUM_SCALES", 3),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.SMCA.HIDDEN_DIM", 32, "MODEL.SMCA.NHEADS", 4, "MODEL.SMCA.NUM_QUERIES", 10),
    *("MODEL.SMCA.DIM_FEEDFORWARD", 32, "MODEL.SMCA.ENCODER.BLOCKS", ["intra", "multi"]),
    *("MODEL.SMCA.DECODER.NUM_LAYERS", 2, "MODEL.BACKBONE.FREEZE_RANDOM", True),
]


@pytest.fixture(scope="session")
def config():
    """``config("smca_R50_50ep", "KEY", value, ...)``: a config of configs/ with changes."""
    import smca
    from smca.config import load_cfg

    def load(name: str, *opts):
        return load_cfg(smca.get_cfg(), str(ROOT / "configs" / f"{name}.yaml"), list(opts))

    return load


@pytest.fixture(scope="session")
def tiny_config(config):
    """The quickstart's config with a detector of a few thousand parameters, and changes."""
    return lambda *opts: config("quickstart", *TINY, *opts)


@pytest.fixture(scope="session")
def shapes(tmp_path_factory):
    """``{"train": (annotation file, image folder), "val": ...}``."""
    root = tmp_path_factory.mktemp("d2") / "shapes"
    return write_shapes_dataset(root, num_train=12, num_val=6, image_size=64)


@pytest.fixture
def config_file(tiny_config, shapes, tmp_path):
    """``config_file("KEY", value, ...)``: the path of a YAML file that trains for 6 iterations."""
    changes = [
        *("DATASETS.COCO_FORMAT", [[name, *files] for name, files in shapes.items()]),
        *("DATASETS.TRAIN", ("train",), "DATASETS.TEST", ("val",), "DATALOADER.NUM_WORKERS", 0),
        *("SOLVER.MAX_ITER", 6, "SOLVER.STEPS", (4,), "SOLVER.IMS_PER_BATCH", 4),
        *("SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 0),
        *("OUTPUT_DIR", str(tmp_path / "out")),
    ]

    def write(*opts):
        path = tmp_path / "tiny.yaml"
        path.write_text(tiny_config(*changes, *opts).dump())
        return str(path)

    return write


@pytest.fixture(scope="session")
def train_net(tmp_path_factory):
    """``train_net("--resume", ..., "KEY", value)``: runs the program and returns what it printed.

    With ``wait=False`` it returns the process, whose ``printed()`` waits for its end.
    """

    def start(*arguments, wait=True, script=ROOT / "train_net.py"):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        paths = [str(ROOT / "projects" / "SMCA"), os.getenv("PYTHONPATH")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        log = tmp_path_factory.mktemp("log") / "log.txt"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, str(script), *map(str, arguments)],
                cwd=ROOT,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

        def printed():
            process.wait(timeout=300)
            return log.read_text()

        if not wait:
            process.printed = printed
            return process
        output = printed()
        assert process.returncode == 0, output[-5000:]
        return output

    return start
