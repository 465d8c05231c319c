"""Command lines: what all programs read alike, and the training program's own."""

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import islice

from ..config import KEYS, config_file
from ..errors import ConfigError
from ..imports import import_all

_GROUPS = {key.partition(".")[0] for key in KEYS}


class Parser(argparse.ArgumentParser):
    """Reads flags and, after :func:`add_opts`, config options, in any order.

    Options are ``KEY VALUE``, ``KEY=VALUE`` or either after ``--opts``. A word that begins with
    ``~`` is a path below a home folder, also where the shell has not seen that.
    """

    def parse_known_args(self, args=None, namespace=None):
        words = [expand_home(word) for word in (sys.argv[1:] if args is None else args)]
        flags, opts = self._apart(words) if self._takes_options else (words, [])
        namespace, unknown = super().parse_known_args(flags, namespace)
        if opts:
            namespace.opts = opts + namespace.opts
        return namespace, unknown

    def _apart(self, words: Sequence[str]) -> tuple[list[str], list[str]]:
        """The words that argparse reads, and the config options among them."""
        flags: list[str] = []
        opts: list[str] = []
        rest = iter(words)
        for word in rest:
            key, equals, value = word.partition("=")
            flag = self._option_string_actions.get(word)
            if flag and flag.nargs in (None, "+"):
                flags += [word, *islice(rest, 1)]
                continue
            # A file may be named like a key.
            if key.partition(".")[0] not in _GROUPS or os.path.exists(word):
                flags += [word] if word != "--opts" else []
                continue
            value = value if equals else next(rest, "--")
            if value.startswith("--"):
                self.error(f"{key} has no value; config options are KEY VALUE pairs")
            opts += [key, value]
        return flags, opts

    def error(self, message):
        name = message.partition("unrecognized arguments: --")[2].upper().replace("-", "_")
        if name and self._takes_options:
            near = next((key for key in KEYS if key.endswith(name)), "SOLVER.IMS_PER_BATCH")
            message += f"; --help lists the flags, and config keys are set as KEY VALUE: {near} ..."
        super().error(message)

    @property
    def _takes_options(self) -> bool:
        return any(action.dest == "opts" for action in self._actions)


def expand_home(word: str) -> str:
    """Expand ``~`` and ``~user`` at the start of a word, or after its ``=``."""
    start, equals, path = ("", "", word) if word.startswith("~") else word.rpartition("=")
    return start + equals + os.path.expanduser(path)


def argument_parser(description: str | None = None) -> argparse.ArgumentParser:
    """Return a parser of Detectron2's flags, with ``--config`` and ``--engine`` added."""
    parser = Parser(
        description=description,
        epilog="KEY VALUE pairs change the config: SOLVER.BASE_LR 0.0002",
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
    add_opts(parser)
    return parser


def add_opts(parser: Parser) -> None:
    """Add ``--import`` and the options that change the config, ``args.opts``."""
    add_import(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys and values"
    )


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
