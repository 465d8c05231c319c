"""The training program's command line, and the flag of all programs for parts of your own."""

import argparse

from ..config import config_file
from ..errors import ConfigError
from ..imports import import_all


def argument_parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return a parser of Detectron2's flags, with ``--config`` and ``--engine`` added."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog="KEY VALUE pairs after the flags change the config: SOLVER.BASE_LR 0.0002",
    )
    config = parser.add_mutually_exclusive_group(required=True)
    config.add_argument("--config-file", metavar="FILE", help="a YAML file, such as configs/*.yaml")
    config.add_argument(
        "--config",
        dest="config_file",
        type=_zoo_file,
        metavar="NAME",
        help="a config of the model zoo, from any folder: quickstart, smca_R50_50ep, ...",
    )
    parser.add_argument(
        "--engine",
        choices=("auto", "detectron2", "native"),
        default="auto",
        help="what runs the model: Detectron2, or PyPI packages alone; auto takes Detectron2 "
        "where it is installed",
    )
    parser.add_argument(
        "--resume", action="store_true", help="continue from the last checkpoint in OUTPUT_DIR"
    )
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate on DATASETS.TEST: MODEL.WEIGHTS, or a run's last checkpoint if the run "
        "started from MODEL.WEIGHTS; --resume always takes the last checkpoint",
    )
    parser.add_argument(
        "--num-gpus",
        type=_count,
        help="processes on this machine: one per GPU, or that many on the CPU without a GPU "
        "(default: 1, or as many as torchrun has started)",
    )
    parser.add_argument("--num-machines", type=_count, help="number of machines (default: 1)")
    parser.add_argument("--machine-rank", type=int, help="number of this machine, from 0")
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="tcp://host:port of machine 0, the same on every machine; auto: a free port, "
        "for one machine",
    )
    add_import(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys and values"
    )
    return parser


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add ``--import``, whose modules and files are imported while the command line is read."""
    parser.add_argument(
        "--import",
        dest="imports",
        action=_Import,
        default=[],
        metavar="MODULE_OR_FILE",
        help="import this module, or this Python file, before the config is read: it registers "
        "parts and config keys of your own (may be repeated)",
    )


class _Import(argparse.Action):
    def __call__(self, parser, namespace, name, option_string=None) -> None:
        import_all([name])
        namespace.imports = [*namespace.imports, name]


def _zoo_file(name: str) -> str:
    try:
        return config_file(name)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(f"{error}; --config-file takes a file") from error


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number
