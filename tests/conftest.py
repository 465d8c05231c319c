"""What tests of all parts share: small configs and threads that do not fight for cores."""

import contextlib
import functools
import gc
import importlib.util
import io
import logging
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
import torch
from engines import ENGINES

from smca.data.shapes import write_shapes_dataset

ROOT = Path(__file__).parent.parent
os.chdir(ROOT)
# Programs that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)
# By default Python looks for garbage after 700 new objects: a tenth of the time of an export.
gc.set_threshold(50_000)
# The same cases in every run. HYPOTHESIS_PROFILE=explore draws others each time, and keeps what
# fails in .hypothesis; --hypothesis-show-statistics counts them.
hypothesis.settings.register_profile("same", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.getenv("HYPOTHESIS_PROFILE", "same"))

# A detector small enough to train for a few iterations in a test.
TINY = [
    *("MODEL.SMCA.QUERY_GROUPS", 1),
    *("MODEL.RESNETS.DEPTH", 10, "MODEL.RESNETS.STEM_TYPE", "basic", "MODEL.RESNETS.NORM", "BN"),
    *("MODEL.SMCA.IN_FEATURES", ["res4", "res5"], "MODEL.SMCA.NUM_SCALES", 3),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.SMCA.HIDDEN_DIM", 32, "MODEL.SMCA.NHEADS", 4, "MODEL.SMCA.NUM_QUERIES", 10),
    *("MODEL.SMCA.DIM_FEEDFORWARD", 32, "MODEL.SMCA.ENCODER.BLOCKS", ["intra", "multi"]),
    *("MODEL.SMCA.DECODER.NUM_LAYERS", 2, "MODEL.BACKBONE.FREEZE_RANDOM", True),
]


@pytest.fixture(params=ENGINES)
def engine(request):
    """Each host."""
    return request.param


@pytest.fixture(scope="session")
def config():
    """``config("smca_R50_50ep", "KEY", value, ...)``: a config of configs/ with changes."""
    import smca
    from smca.config import load_cfg

    def load(name: str, *opts):
        return load_cfg(smca.get_cfg(), str(ROOT / "configs" / f"{name}.yaml"), list(opts))

    return load


@pytest.fixture(scope="session")
def tiny_opts():
    """The changes that make the quickstart's detector tiny: ``["KEY", value, ...]``."""
    return TINY


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
        *("MODEL.SMCA.QUERY_GROUPS", 2),  # what one model has, programs do with several
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


class Ended(NamedTuple):
    """The exit code of a program that has run in this process, and what it printed."""

    returncode: int
    output: str

    @property
    def last(self) -> str:
        return self.output.splitlines()[-1]

    def done(self) -> str:
        assert self.returncode == 0, self.output[-5000:]
        return self.output


@functools.cache
def load_program(name):
    """The module of a program, by its path in the repository."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def program():
    """``program("tools/plot_training.py", ...)`` runs a program in this process: an :class:`Ended`.

    It leaves no log handler, random state or setting behind.
    """

    def run(name, *arguments):
        printed = io.StringIO()
        setting, states = logging.raiseExceptions, (random.getstate(), np.random.get_state())
        try:
            with (
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(printed),
                torch.random.fork_rng(devices=[]),
                warnings.catch_warnings(),
            ):
                code = load_program(name).main(list(map(str, arguments)))
        except SystemExit as stop:
            code = stop.code
        finally:
            logging.raiseExceptions = setting
            random.setstate(states[0])
            np.random.set_state(states[1])
            gc.unfreeze()
            _drop_log_handlers()
        return Ended(code or 0, printed.getvalue())

    return run


def _drop_log_handlers():
    """A run's handlers write to a file that the test removes, and to what this test captures."""
    for name in (None, "smca", "fvcore", "detectron2"):
        logger = logging.getLogger(name)
        logger.propagate = True
        for handler in logger.handlers[:]:
            if type(handler) in (logging.StreamHandler, logging.FileHandler):
                logger.removeHandler(handler)
                if isinstance(handler, logging.FileHandler):
                    handler.close()
    if detectron2 := sys.modules.get("detectron2.utils.logger"):
        detectron2.setup_logger.cache_clear()
        detectron2._cached_log_stream.cache_clear()


@pytest.fixture(scope="session")
def train_net(program):
    """``train_net("--resume", ..., "KEY", value)``: trains here and returns what was printed."""

    def run(*arguments):
        return program("train_net.py", *arguments).done()

    return run


@pytest.fixture(scope="session")
def start_program(tmp_path_factory):
    """The program in a process of its own; ``printed()`` waits for its end, ``done()`` for a 0."""

    def start(*arguments, script=ROOT / "train_net.py"):
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

        def done():
            output = printed()
            assert process.returncode == 0, output[-5000:]
            return output

        process.printed, process.done = printed, done
        return process

    return start
