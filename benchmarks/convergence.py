#!/usr/bin/env python3
"""Race SMCA, Conditional DETR and DETR on drawn shapes with one recipe, budget and set of seeds.

Each run starts train_net.py in its own process and folder. The same command continues a race that
was stopped, and skips complete runs. --opts KEY VALUE ... changes the recipe of all systems.

Example:
    python benchmarks/convergence.py --size small --seeds 0 1 2
"""

import argparse
import fcntl
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from convergence_report import (
    Run,
    markdown,
    plot,
    read_race,
    read_run,
    run_folder,
    write_csv,
)
from fvcore.common.config import CfgNode
from origin import record_start, recorded

from smca import get_cfg
from smca.config import ConfigError, flatten, load_cfg, validate
from smca.data.shapes import write_shapes_dataset
from smca.engine.guard import guarded

ROOT = Path(__file__).resolve().parents[1]

# The title of each system, and the config values in which it differs from the recipe.
_MODULATION = "MODEL.SMCA.MODULATION"
_DECODER = "MODEL.SMCA.DECODER.NAME"
SYSTEMS: dict[str, tuple[str, list[str]]] = {
    "smca-independent": ("SMCA, independent", [f"{_MODULATION}.SCALE", "independent"]),
    "smca-single": ("SMCA, single", [f"{_MODULATION}.SCALE", "single"]),
    "smca-head-shared": ("SMCA, head-shared", [f"{_MODULATION}.HEADS", "shared"]),
    "smca-fixed": ("SMCA, fixed", [f"{_MODULATION}.SCALE", "fixed"]),
    "conditional-detr": ("Conditional DETR", [_DECODER, "ConditionalDecoder"]),
    "detr": ("DETR", [_DECODER, "DETRDecoder"]),
}
TITLES = {name: title for name, (title, _) in SYSTEMS.items()}

# The data to draw for each size; the recipe is in configs/convergence_<size>.yaml.
DATA: dict[str, dict[str, int]] = {
    "small": {"num_train": 4000, "num_val": 300},
    "medium": {
        "num_train": 6000,
        "num_val": 500,
        "image_size": 512,
        "num_classes": 20,
        "max_objects": 40,
        "min_side": 12,
        "max_side": 128,
    },
}
_RECIPE = "recipe.yaml"
# Runs of one race may differ in these keys.
_NOT_THE_RECIPE = {"OUTPUT_DIR", "SEED", "DATALOADER.NUM_WORKERS"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=DATA, default="small", help="medium needs a GPU")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--iterations", type=int, help="replaces the recipe's number")
    parser.add_argument("--eval-period", type=int, help="iterations between two evaluations")
    parser.add_argument(
        "--images", nargs=2, type=int, metavar=("TRAIN", "VAL"), help="numbers of images to draw"
    )
    parser.add_argument("--data", help="data folder (default: datasets/convergence_SIZE)")
    parser.add_argument(
        "--output", help="folder for runs and report (default: benchmarks/out/convergence_SIZE)"
    )
    parser.add_argument("--engine", choices=("auto", "detectron2", "native"), default="native")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of each run")
    parser.add_argument("--dry-run", action="store_true", help="print the commands left to run")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument("--docs", action="store_true", help="also write the report into docs/")
    parser.add_argument(
        "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="comes last"
    )
    args = parser.parse_args()
    args.output = Path(args.output or ROOT / f"benchmarks/out/convergence_{args.size}").resolve()
    return args


def recipe_options(args: argparse.Namespace) -> list[str]:
    """Return the KEY VALUE pairs that all systems share in addition to the config file."""
    options = []
    if args.iterations:
        options += ["SOLVER.MAX_ITER", f"{args.iterations}"]
        options += ["SOLVER.STEPS", f"({args.iterations * 4 // 5},)"]
    if args.eval_period:
        options += ["TEST.EVAL_PERIOD", f"{args.eval_period}"]
        options += ["SOLVER.CHECKPOINT_PERIOD", f"{args.eval_period}"]
    if args.data:
        data = Path(args.data).resolve()
        named = [
            [f"shapes_{split}", f"{data}/annotations/{split}.json", f"{data}/{split}"]
            for split in ("train", "val")
        ]
        options += ["DATASETS.COCO_FORMAT", str(named)]
    return options + args.opts


def config_file(size: str) -> str:
    return f"benchmarks/configs/convergence_{size}.yaml"


def command(args: argparse.Namespace, system: str, seed: int) -> list[str]:
    """Return the training program's command line for one run."""
    return [
        *(sys.executable, str(ROOT / "train_net.py"), "--config-file", config_file(args.size)),
        *("--engine", args.engine, "--num-gpus", f"{args.num_gpus}", "--resume"),
        *("OUTPUT_DIR", str(run_folder(args.output, system, seed)), "SEED", f"{seed}"),
        *recipe_options(args),
        *SYSTEMS[system][1],
    ]


def shown_command(args: argparse.Namespace) -> str:
    """Return this program's command line without the folders, which differ between machines."""
    chosen = ["--size", args.size, "--seeds", *map(str, args.seeds)]
    if len(args.systems) < len(SYSTEMS):
        chosen += ["--systems", *args.systems]
    for flag in ("iterations", "eval_period", "images"):
        if value := getattr(args, flag):
            words = value if isinstance(value, list) else [value]
            chosen += [f"--{flag.replace('_', '-')}", *map(str, words)]
    if args.engine != "native":
        chosen += ["--engine", args.engine]
    if args.num_gpus > 1:
        chosen += ["--num-gpus", str(args.num_gpus)]
    if args.opts:
        chosen += ["--opts", *args.opts]
    return shlex.join(["python", "benchmarks/convergence.py", *chosen])


def keep_recipe(cfg: CfgNode, output: Path) -> None:
    """Write the recipe into a new race's folder, or compare it with the recipe found there.

    Raises:
        ConfigError: the race in ``output`` has another recipe.
    """
    path = output / _RECIPE
    if not path.exists():
        output.mkdir(parents=True, exist_ok=True)
        path.write_text(cfg.dump())
        return
    before, now = flatten(yaml.safe_load(path.read_text())), flatten(yaml.safe_load(cfg.dump()))
    other = [k for k in before if k not in _NOT_THE_RECIPE and k in now and before[k] != now[k]]
    if other:
        raise ConfigError(
            f"{output} holds a race of another recipe ({', '.join(other)} differ); "
            "name another folder with --output, or remove this one"
        )


def lock(output: Path) -> int:
    """Lock ``output`` for this race and the programs it starts; return the lock's descriptor.

    Raises:
        ConfigError: another race, or a run that it left behind, works in ``output``.
    """
    descriptor = os.open(output / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigError(f"another race is at work in {output}; wait for its end") from None
    return descriptor


def run_program(arguments: Sequence[str], held: int) -> int:
    """Run a program to its end, forward signals to it, and return its exit code.

    A program that received a signal counts as stopped, even if it ended normally.

    Args:
        arguments: the command line.
        held: the descriptor of :func:`lock`, which the program inherits.
    """
    asked: list[int] = []
    process = subprocess.Popen(arguments, cwd=ROOT, pass_fds=[held])

    def forward(number: int, _frame) -> None:
        asked.append(number)
        process.send_signal(number)

    previous = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code or (128 + asked[0] if asked else 0)


def train(args: argparse.Namespace, iterations: int, held: int) -> int:
    """Train the remaining runs and report after each; return the first exit code that is not 0."""
    runs = [(system, seed) for seed in args.seeds for system in args.systems]
    for number, (system, seed) in enumerate(runs, start=1):
        name = f"{TITLES[system]}, seed {seed} (run {number} of {len(runs)})"
        if iterations in read_run(args.output, system, seed, iterations).evaluations:
            print(f"{name}: done before", flush=True)
            continue
        arguments = command(args, system, seed)
        if args.dry_run:
            print(shlex.join(arguments))
            continue
        print(f"{name}\n{shlex.join(arguments)}", flush=True)
        folder = run_folder(args.output, system, seed)
        folder.mkdir(parents=True, exist_ok=True)
        record_start(folder, shown_command(args))
        if code := run_program(arguments, held):
            print(f"{name}: ended with exit code {code}; the same command continues", flush=True)
            return code if code > 0 else 128 - code
        for checkpoint in folder.glob("model_[0-9]*.pth"):
            checkpoint.unlink()  # saved during the run, at each evaluation
        report(args, iterations)
    return 0


def folders(output: Path, runs: Sequence[Run]) -> list[Path]:
    """Return the folder of each run."""
    return [run_folder(output, run.system, run.seed) for run in runs]


def report(args: argparse.Namespace, iterations: int) -> str:
    """Write the CSV file, the tables and the picture; return the tables."""
    runs = read_race(args.output, list(SYSTEMS), iterations)
    tables = markdown(runs, TITLES)
    write_csv(runs, args.output / "convergence.csv")
    (args.output / "convergence.md").write_text(f"{tables}\n{recorded(folders(args.output, runs))}")
    plot(runs, TITLES, args.output / "convergence.png")
    return tables


def write_docs(args: argparse.Namespace, iterations: int) -> None:
    """Replace this size's picture, and its part of docs/CONVERGENCE.md between two marks.

    Raises:
        ConfigError: the page lacks the marks.
    """
    page, picture = ROOT / "docs/CONVERGENCE.md", f"convergence_{args.size}.png"
    begin, end = (f"<!-- {args.size}: {word} -->\n" for word in ("begin", "end"))
    text = page.read_text()
    if begin not in text or end not in text:
        raise ConfigError(f"{page} lacks the lines {begin.strip()} and {end.strip()}")
    runs = read_race(args.output, list(SYSTEMS), iterations)
    plot(runs, TITLES, page.with_name(picture))
    part = f"![AP over iterations]({picture})\n\n{markdown(runs, TITLES)}\n"
    part += recorded(folders(args.output, runs))
    page.write_text(f"{text.split(begin)[0]}{begin}{part}{end}{text.split(end)[1]}")


def main() -> int:
    args = parse()
    recipe = args.output / _RECIPE
    if args.report_only:
        if not recipe.exists():
            raise FileNotFoundError(f"there is no race in {args.output}; name it with --output")
        iterations = yaml.safe_load(recipe.read_text())["SOLVER"]["MAX_ITER"]
        code = 0
    else:
        cfg = load_cfg(get_cfg(), str(ROOT / config_file(args.size)), recipe_options(args))
        validate(cfg)
        iterations = cfg.SOLVER.MAX_ITER
        if args.dry_run:
            return train(args, iterations, held=-1)
        keep_recipe(cfg, args.output)
        held = lock(args.output)
        counts = dict(zip(("num_train", "num_val"), args.images or (), strict=False))
        data = args.data or ROOT / f"datasets/convergence_{args.size}"
        write_shapes_dataset(data, **{**DATA[args.size], **counts})
        code = train(args, iterations, held)
    print(report(args, iterations))
    if args.docs:
        write_docs(args, iterations)
    print(f"{args.output}/convergence.csv, .md and .png")
    return code


if __name__ == "__main__":
    sys.exit(guarded(main))
