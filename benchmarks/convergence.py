#!/usr/bin/env python3
"""Race SMCA, Conditional DETR and DETR with one recipe, on drawn scenes or on photographs.

Each run starts train_net.py in its own process and folder. A finished run's evaluations are added
to benchmarks/results/convergence_RACE.csv, and the run is not trained again. The same command
continues a race that was stopped. Started twice it uses two cores, since each program takes the
runs that no other is at. --report-only makes tables and picture from the results alone.

A change of the recipe (--iterations, --opts, ...) needs a folder of its own (--output), which then
holds the results, too.

Example:
    python benchmarks/convergence.py scenes --systems smca-independent detr --seeds 0
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
from convergence_costs import measure_costs, read_costs
from convergence_races import AT_A_GLANCE, RACES, SYSTEMS, TITLES
from convergence_report import draw_examples, markdown, origins, plot
from convergence_results import add_results, read_results, read_run
from fvcore.common.config import CfgNode
from origin import record_start, starts

from smca import get_cfg
from smca.config import ConfigError, flatten, load_cfg, validate
from smca.engine.guard import guarded

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results"
# Each run is evaluated so often.
_EVALUATIONS = 40
# Runs of one race may differ in these keys.
_NOT_THE_RECIPE = {"OUTPUT_DIR", "SEED", "DATALOADER.NUM_WORKERS"}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("race", choices=RACES, help="the data; medium is for a GPU")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, help="default: all of the race")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: the race's, by system")
    parser.add_argument("--data", type=Path, help="default: datasets/convergence_RACE")
    parser.add_argument("--output", type=Path, help="default: benchmarks/out/convergence_RACE")
    parser.add_argument("--costs", action="store_true", help="only measure an iteration's costs")
    parser.add_argument("--dry-run", action="store_true", help="print the commands left to run")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    parser.add_argument("--docs", action="store_true", help="also write the report into docs/")
    recipe = parser.add_argument_group("changes of the recipe", "They need --output.")
    changes = [
        recipe.add_argument("--iterations", type=int, help="of each run"),
        recipe.add_argument("--eval-period", type=int, help="iterations between two evaluations"),
        recipe.add_argument("--images", nargs=2, type=int, metavar=("TRAIN", "VAL")),
        recipe.add_argument("--engine", choices=("auto", "detectron2", "native"), default="native"),
        recipe.add_argument("--num-gpus", type=int, default=1, help="processes of each run"),
        recipe.add_argument(
            "--opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="comes last"
        ),
    ]
    args = parser.parse_args(argv)
    changed = [c.option_strings[0] for c in changes if getattr(args, c.dest) != c.default]
    if changed and not args.output:
        parser.error(f"{', '.join(changed)}: name a folder of your own with --output")
    if args.images and args.race == "photographs":
        parser.error("--images: photographs are not drawn")
    if args.costs and "detr" not in (args.systems or ["detr"]):
        parser.error("--costs: times are relative to DETR's; add detr to --systems")
    name = f"convergence_{args.race}"
    args.results = (args.output or RESULTS) / f"{name}.csv"
    args.costs_file = args.results.with_name(f"{name}_costs.csv")
    args.output = (args.output or ROOT / "benchmarks/out" / name).resolve()
    args.data = (args.data or ROOT / "datasets" / name).resolve()
    return args


def config_file(race: str) -> str:
    return str(ROOT / f"benchmarks/configs/convergence_{race}.yaml")


def recipe_options(args: argparse.Namespace) -> list[str]:
    """Return the KEY VALUE pairs that all runs share in addition to the config file."""
    files = [
        [name, f"{args.data}/annotations/{split}.json", f"{args.data}/{split}"]
        for name, split in zip(RACES[args.race].datasets, ("train", "val"), strict=True)
    ]
    return ["DATASETS.COCO_FORMAT", str(files), *args.opts]


def run_folder(args: argparse.Namespace, system: str, seed: int) -> Path:
    return args.output / system / f"seed{seed}"


def run_options(args: argparse.Namespace, system: str, seed: int) -> list[str]:
    """Return the KEY VALUE pairs of one run."""
    length = args.iterations or RACES[args.race].iterations[system]
    period = args.eval_period or max(1, length // _EVALUATIONS)
    return [
        *("OUTPUT_DIR", str(run_folder(args, system, seed)), "SEED", f"{seed}"),
        # The rate drops after four fifths of a run, like the paper's after 40 of 50 epochs.
        *("SOLVER.MAX_ITER", f"{length}", "SOLVER.STEPS", f"({length * 4 // 5},)"),
        *("TEST.EVAL_PERIOD", f"{period}", "SOLVER.CHECKPOINT_PERIOD", f"{period}"),
        *recipe_options(args),
        *SYSTEMS[system][1],
    ]


def command(args: argparse.Namespace, system: str, seed: int) -> list[str]:
    """Return the training program's command line for one run."""
    return [
        *(sys.executable, str(ROOT / "train_net.py"), "--config-file", config_file(args.race)),
        *("--engine", args.engine, "--num-gpus", f"{args.num_gpus}", "--resume"),
        *run_options(args, system, seed),
    ]


def chosen_runs(args: argparse.Namespace) -> list[tuple[str, int]]:
    """Return the chosen systems and seeds, one seed of all systems after the other."""
    seeds = RACES[args.race].seeds
    systems = args.systems or list(seeds)
    pairs = [(system, seed) for system in systems for seed in args.seeds or seeds.get(system, (0,))]
    return sorted(pairs, key=lambda pair: pair[1])


def chosen_configs(args: argparse.Namespace) -> dict[str, CfgNode]:
    """Return the config of each chosen system.

    Raises:
        ConfigError: a config is not valid.
    """
    configs = {}
    for system, seed in chosen_runs(args):
        options = run_options(args, system, seed)
        configs[system] = load_cfg(get_cfg(), config_file(args.race), options)
        validate(configs[system])
    return configs


def keep_recipe(args: argparse.Namespace) -> None:
    """Write the recipe into a new race's folder, or compare it with the recipe found there.

    Raises:
        ConfigError: the race in the folder has another recipe.
    """
    cfg = load_cfg(get_cfg(), config_file(args.race), recipe_options(args))
    path = args.output / "recipe.yaml"
    if not path.exists():
        args.output.mkdir(parents=True, exist_ok=True)
        path.write_text(cfg.dump())
        return
    before, now = flatten(yaml.safe_load(path.read_text())), flatten(yaml.safe_load(cfg.dump()))
    other = [k for k in before if k not in _NOT_THE_RECIPE and k in now and before[k] != now[k]]
    if other:
        raise ConfigError(
            f"{args.output} holds a race of another recipe ({', '.join(other)} differ); "
            "name another folder with --output, or remove this one"
        )


def lock(folder: Path) -> int | None:
    """Lock a run's folder; return the lock's descriptor, or None if another program holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
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


def train(args: argparse.Namespace) -> int:
    """Train the runs without results that no other program is at.

    Returns:
        the first exit code that is not 0.
    """
    runs = chosen_runs(args)
    for number, (system, seed) in enumerate(runs, start=1):
        name = f"{TITLES[system]}, seed {seed} (run {number} of {len(runs)})"
        folder = run_folder(args, system, seed)
        held = lock(folder)
        if held is None:
            print(f"{name}: another program is at it", flush=True)
            continue
        # Read with the lock held: another program may have finished the run just now.
        if (system, seed) in {(run.system, run.seed) for run in read_results(args.results)}:
            print(f"{name}: done before", flush=True)
        else:
            arguments = command(args, system, seed)
            print(f"{name}\n{shlex.join(arguments)}", flush=True)
            record_start(folder)
            if code := run_program(arguments, held):
                print(f"{name}: ended with exit code {code}; the same command continues it")
                return code if code > 0 else 128 - code
            for checkpoint in folder.glob("model_[0-9]*.pth"):
                checkpoint.unlink()  # saved during the run, at each evaluation
            length = args.iterations or RACES[args.race].iterations[system]
            run = read_run(folder, system, seed, length)
            add_results(args.results, run, starts(folder))
        os.close(held)
    return 0


def report(args: argparse.Namespace, picture: Path | None = None) -> str:
    """Write tables and picture, by default into the folder of the runs; return the tables."""
    runs = read_results(args.results)
    text = f"{len(runs)} of {len(chosen_runs(args))} runs have finished.\n\n"
    text += f"{markdown(runs, TITLES, read_costs(args.costs_file))}\n{origins(runs)}"
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "report.md").write_text(text)
    plot({args.race.capitalize(): runs}, TITLES, picture or args.output / "report.png")
    return text


def write_docs(args: argparse.Namespace) -> None:
    """Replace this race's part of docs/CONVERGENCE.md between two marks, and the pictures, those of
    the data if it is there.

    Raises:
        ConfigError: the page lacks the marks.
    """
    page = ROOT / "docs/CONVERGENCE.md"
    begin, end = (f"<!-- {args.race}: {word} -->\n" for word in ("begin", "end"))
    text = page.read_text()
    if begin not in text or end not in text:
        raise ConfigError(f"{page} lacks the lines {begin.strip()} and {end.strip()}")
    picture = page.with_name(f"convergence_{args.race}.png")
    part = f"![AP over iterations, all systems]({picture.name})\n\n{report(args, picture)}"
    page.write_text(f"{text.split(begin)[0]}{begin}{part}{end}{text.split(end)[1]}")
    races = {name: read_results(RESULTS / f"convergence_{name}.csv") for name in RACES}
    shown = {name.capitalize(): runs for name, runs in races.items() if runs}
    few = {system: TITLES[system] for system in AT_A_GLANCE}
    plot(shown, few, page.with_name("convergence.png"), arrows=True)
    if args.data.exists():
        draw_examples(args.data, page.with_name(f"convergence_{args.race}_data.jpg"))


def main() -> int:
    args = parse()
    code = 0
    if not args.report_only:
        race, configs = RACES[args.race], chosen_configs(args)
        if args.dry_run:
            done = {(run.system, run.seed) for run in read_results(args.results)}
            for run in chosen_runs(args):
                if run not in done:
                    print(shlex.join(command(args, *run)))
            return 0
        if args.costs:
            measure_costs(configs, race.size, args.costs_file)
        else:
            keep_recipe(args)
            counts = dict(zip(("num_train", "num_val"), args.images or (), strict=False))
            race.write(args.data, **counts)
            code = train(args)
    print(report(args))
    if args.docs:
        write_docs(args)
    print(f"{args.output}/report.md and .png")
    return code


if __name__ == "__main__":
    sys.exit(guarded(main))
