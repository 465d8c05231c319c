"""Programs that test_long_runs.py starts: each prints, as JSON, what its process holds meanwhile.

python tests/support/watched_programs.py evaluate CONFIG_FILE ENGINE TIMES IMAGE,IMAGE,...
python tests/support/watched_programs.py predict CONFIG_FILE ENGINE WEIGHTS IMAGES
python tests/support/watched_programs.py load CONFIG_FILE
"""

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict

import numpy as np
import torch
from footprint import Footprint, footprint
from torch import nn

from smca import Predictor, get_cfg
from smca.config import load_cfg
from smca.engine.prepare import prepare
from smca.modeling import build_detector
from smca.native.evaluator import Evaluator
from smca.native.trainer import build_train_loader

# A thread that looks has a file open meanwhile.
_looking = threading.Lock()


def held() -> Footprint:
    """What this process and its children hold now."""
    with _looking:
        return footprint()


def prepared(config_file: str, engine: str) -> tuple[nn.Module, Callable[[], dict]]:
    """A detector and its evaluation by a host."""
    if engine == "native":
        cfg = prepare(load_cfg(get_cfg(), config_file))
        detector = build_detector(cfg)
        return detector, Evaluator(cfg, detector)
    from detectron2 import config

    from smca.d2 import add_smca_config, register_datasets
    from smca.d2.trainer import Trainer

    cfg = config.get_cfg()
    add_smca_config(cfg)
    cfg = prepare(load_cfg(cfg, config_file))
    register_datasets(cfg)
    detector = Trainer.build_model(cfg)
    return detector, lambda: Trainer.test(cfg, detector)


def evaluate(config_file: str, engine: str, times: str, marks: str) -> dict:
    """``before``, at the images that ``marks`` names, the ``most`` in all, and ``after`` each."""
    # With more cores there are more processes that score, each with a class in memory.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    detector, evaluation = prepared(config_file, engine)
    wanted = set(map(int, marks.split(",")))
    at, after, seen = {}, [], 0

    def look(*_):
        nonlocal seen
        seen += 1
        if seen in wanted:
            at[seen] = asdict(held())

    detector.register_forward_hook(look)
    before = asdict(held())
    most = watch_total()
    for _ in range(int(times)):
        evaluation()
        after.append(asdict(held()))
    return {"before": before, "at": at, "after": after, "most": most()}


def watch_total() -> Callable[[], int]:
    """Begins to look at the memory of all processes; what it returns stops, and gives the most."""
    found, stop = [], threading.Event()

    def run():
        while not stop.wait(0.1):
            found.append(held().total)

    thread = threading.Thread(target=run)
    thread.start()

    def most():
        stop.set()
        thread.join()
        return max(found)

    return most


def predict(config_file: str, engine: str, weights: str, images: str) -> dict:
    """``after`` each tenth of the images, of nine sizes in turn.

    On a CPU torch keeps kernels by size, a thousand at most, which is no business of the project.
    """
    predictor = Predictor(config_file, weights, engine=engine)
    rng = np.random.default_rng(0)
    after = []
    for number in range(1, int(images) + 1):
        height, width = 32 + number % 3 * 16, 32 + number // 3 % 3 * 16
        predictor(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        if number % (int(images) // 10) == 0:
            after.append(asdict(held()))
    return {"after": after}


def load(config_file: str) -> dict:
    """``before``, then ``loaded``, and ``training`` with loaders that have made some batches."""
    cfg = prepare(load_cfg(get_cfg(), config_file))
    gc.freeze()  # as smca.engine.launch does before a program trains
    before = asdict(held())
    begun = time.perf_counter()
    loader = build_train_loader(cfg, seed=0)
    seconds = time.perf_counter() - begun
    loaded = asdict(held())
    batches = iter(loader)
    for _ in range(50):
        next(batches)
    return {"before": before, "seconds": seconds, "loaded": loaded, "training": asdict(held())}


if __name__ == "__main__":
    torch.set_num_threads(1)
    program, *arguments = sys.argv[1:]
    programs = {"evaluate": evaluate, "predict": predict, "load": load}
    sys.stdout.write(json.dumps(programs[program](*arguments)) + "\n")
