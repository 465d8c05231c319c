"""The model zoo: every config beside the row of the published table it repeats, as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from ..validation import is_own_model
from .counting import count_model, count_parameters
from .host import Host

# torchvision's ImageNet weights, by depth.
WEIGHTS = {50: "resnet50-0676ba61.pth", 101: "resnet101-63fe2227.pth"}
# Of the image that multiply-adds are counted at: rows and columns of pixels.
SIZE = (800, 1066)
_AP = ("AP", "AP50", "AP75", "APS", "APM", "APL")


@dataclass(frozen=True)
class Row:
    """A row of a published table.

    Attributes:
        printed: what the paper prints, by column; what it does not print is missing.
        config: path in configs/ without ".yaml"; None: the system is not built yet.
        note: name of a remark, or None.
    """

    printed: dict[str, str | int | float]
    config: str | None
    note: str | None


@dataclass(frozen=True)
class Table:
    """A published table."""

    name: str
    source: str
    rows: list[Row]


def published() -> tuple[list[Table], dict[str, str]]:
    """The published tables, and the remarks on their rows by name."""
    text = resources.files(__package__).joinpath("published.yaml").read_text()
    *tables, remarks = yaml.safe_load(text)
    return [
        Table(
            name=table["table"],
            source=table["source"],
            rows=[_row(dict(zip(table["columns"], row, strict=False))) for row in table["rows"]],
        )
        for table in tables
    ], remarks["notes"]


def _row(cells: dict) -> Row:
    config, note = cells.pop("config"), cells.pop("note", None)
    printed = {column: value for column, value in cells.items() if value is not None}
    return Row(printed=printed, config=config, note=note)


def config_names(folder: Path) -> list[str]:
    """The configs below a folder that are models, as :class:`Row` names them."""
    files = sorted(folder.rglob("*.yaml"))
    return [
        file.relative_to(folder).with_suffix("").as_posix()
        for file in files
        if not file.name.startswith("Base-")
    ]


@dataclass(frozen=True)
class Model:
    """What a config's model has here; None where it cannot be built or is not counted."""

    cfg: CfgNode
    parameters: int | None
    multiply_adds: int | None


def count_zoo(
    host: Host,
    folder: Path,
    *,
    flops: bool = True,
    progress: Callable[[str], None] = lambda config: None,
) -> dict[str, Model]:
    """Count the models of all configs below ``folder``, equal ones once.

    Args:
        host: builds them; models of Detectron2's own remain uncounted in the native one.
        folder: configs/.
        flops: count multiply-adds too, which takes minutes.
        progress: is called with each config's name.
    """
    counted: dict[str, tuple[int | None, int | None]] = {}
    models = {}
    for name in config_names(folder):
        progress(name)
        cfg = host.read(str(folder / f"{name}.yaml"), [])
        key = cfg.MODEL.dump()
        if key not in counted:
            if not is_own_model(cfg) and host.name != "detectron2":
                counted[key] = (None, None)
            else:
                counted[key] = _count(host, cfg, flops)
        models[name] = Model(cfg, *counted[key])
    return models


def _count(host: Host, cfg: CfgNode, flops: bool) -> tuple[int, int | None]:
    if not flops:
        return count_parameters(host.build(cfg, "meta").model).trainable, None
    counts = count_model(host.build(cfg, "cpu"), size=SIZE, activations=False).parts[""]
    return counts.trainable, counts.multiply_adds


def train_command(name: str, cfg: CfgNode) -> str:
    """The command that trains a config on 8 GPUs."""
    command = ["python", "train_net.py", "--config-file", f"configs/{name}.yaml"]
    if not is_own_model(cfg):
        command += ["--engine", "detectron2"]
    if cfg.MODEL.RESNETS.DEPTH in WEIGHTS:
        weights = WEIGHTS[cfg.MODEL.RESNETS.DEPTH]
        command += ["--num-gpus", "8", "MODEL.WEIGHTS", weights]
    return shlex.join(command)


def model_zoo(
    host: Host,
    folder: Path,
    *,
    flops: bool = True,
    progress: Callable[[str], None] = lambda config: None,
) -> str:
    """The whole document; for the arguments see :func:`count_zoo`."""
    models = count_zoo(host, folder, flops=flops, progress=progress)
    tables, notes = published()
    parts = [_INTRODUCTION]
    for table in tables:
        parts.append(f"## {table.name}\n\n{table.source[0].upper()}{table.source[1:]}.\n")
        parts.append(_markdown(table.rows, models))
        parts.append(_commands([row.config for row in table.rows], models))
    parts += [f"[^{name}]: {text}\n" for name, text in notes.items()]
    return "\n".join(parts)


_INTRODUCTION = """\
# Model zoo

<!-- Generated by: python tools/analyze_model.py --table --output docs/MODEL_ZOO.md -->

Each row of the published tables, and the config that repeats it. **Every AP here is its authors'
own. None was measured with this code**, which has not been trained on COCO yet.

- *Parameters*, in millions: *ours* are those that are trained, counted with this code; frozen
  layers and batch-norm numbers are left out. A footnote explains what differs by more than 0.15
  from a published number with a decimal, and by more than 0.7 from one without.
- *GFLOPs*, in multiply-adds: *ours* are those of one image of 800x1066, counted by fvcore, with
  both products of each attention over the channels it is defined with, whatever kernel computes
  them. The published are means over 100 validation images: ResNet-101 costs 66 more than
  ResNet-50 there and 63.4 here, so their mean image has 1.04 times our pixels, and what attention
  costs grows with the square. Faster R-CNN is counted with as many proposals as it may have, 1000.
- *Weights*: `resnet50-0676ba61.pth` and `resnet101-63fe2227.pth` are torchvision's ImageNet
  weights, from https://download.pytorch.org/models/. Commands are for 8 GPUs, with the batch that
  the config names.

`python tools/analyze_model.py --config-file configs/smca_R50_50ep.yaml` counts a model by parts.
"""


def _markdown(rows: list[Row], models: dict[str, Model]) -> str:
    columns = [column for column in _AP if any(column in row.printed for row in rows)]
    header = ["model", "config", "epochs", "params ours", "published"]
    header += ["GFLOPs ours", "published", *(f"published {column}" for column in columns)]
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)]]
    for row in rows:
        ours = _our_cells(row, models)
        printed = {key: str(value) for key, value in row.printed.items()}
        lines.append(
            [
                printed["model"] + (f"[^{row.note}]" if row.note else ""),
                ours["config"],
                printed.get("epochs", ""),
                ours["parameters"],
                printed.get("params", ""),
                ours["multiply_adds"],
                printed.get("gflops", ""),
                *(printed.get(column, "") for column in columns),
            ]
        )
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def _our_cells(row: Row, models: dict[str, Model]) -> dict[str, str]:
    if row.config is None:
        return {"config": "not built yet", "parameters": "", "multiply_adds": ""}
    model = models[row.config]
    cells = {"config": f"[{row.config}](../configs/{row.config}.yaml)"}
    if model.parameters is None:
        return cells | {"parameters": "needs Detectron2", "multiply_adds": ""}
    flops = "" if model.multiply_adds is None else f"{model.multiply_adds / 1e9:.1f}"
    return cells | {"parameters": f"{model.parameters / 1e6:.2f}", "multiply_adds": flops}


def _commands(configs: list[str | None], models: dict[str, Model]) -> str:
    commands = [train_command(name, models[name].cfg) for name in dict.fromkeys(configs) if name]
    shown = "\n".join(commands)
    return f"<details><summary>Training commands</summary>\n\n```bash\n{shown}\n```\n\n</details>\n"
