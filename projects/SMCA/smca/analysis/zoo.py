"""The model zoo as Markdown: each config beside the published row that it repeats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode

from ..config import config_names, is_own_model
from .counting import count_model, count_parameters
from .host import Host
from .markdown import markdown_table

# Height and width of the image for which multiply-adds are counted.
SIZE = (800, 1066)
_AP = ("AP", "AP50", "AP75", "APS", "APM", "APL")


@dataclass(frozen=True)
class Row:
    """A row of a published table.

    Attributes:
        printed: the paper's entries by column, without those that it does not print.
        config: path in configs/ without ".yaml"; None if the system is not built yet.
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


def published() -> tuple[list[Table], dict[str, str], str]:
    """Read the published tables, the remarks on their rows by name, and an introduction."""
    text = resources.files(__package__).joinpath("published.yaml").read_text()
    *tables, remarks = yaml.safe_load(text)
    read = [
        Table(
            name=table["table"],
            source=table["source"],
            rows=[_row(dict(zip(table["columns"], row, strict=False))) for row in table["rows"]],
        )
        for table in tables
    ]
    return read, remarks["notes"], remarks["introduction"]


def _row(cells: dict) -> Row:
    config, note = cells.pop("config"), cells.pop("note", None)
    printed = {column: value for column, value in cells.items() if value is not None}
    return Row(printed=printed, config=config, note=note)


@dataclass(frozen=True)
class Model:
    """A config with the counts of its model; None if it cannot be built or is not counted."""

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
    """Count the models of all configs below ``folder``, equal models once.

    Args:
        host: the host that builds the models. The native one leaves out Detectron2's own models.
        folder: folder of the configs.
        flops: whether to count multiply-adds too, which takes minutes.
        progress: called with the name of each config.
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
    engine = "" if is_own_model(cfg) else " --engine detectron2"
    return f"python train_net.py --config-file configs/{name}.yaml{engine} --num-gpus 8"


def model_zoo(
    host: Host,
    folder: Path,
    *,
    flops: bool = True,
    progress: Callable[[str], None] = lambda config: None,
) -> str:
    """The whole document; see :func:`count_zoo` for the arguments."""
    models = count_zoo(host, folder, flops=flops, progress=progress)
    tables, notes, introduction = published()
    parts = [introduction]
    for table in tables:
        parts.append(f"## {table.name}\n\n{table.source[0].upper()}{table.source[1:]}.\n")
        parts.append(_markdown(table.rows, models))
        parts.append(_commands([row.config for row in table.rows], models))
    parts += [f"[^{name}]: {text}\n" for name, text in notes.items()]
    return "\n".join(parts)


def _markdown(rows: list[Row], models: dict[str, Model]) -> str:
    columns = [column for column in _AP if any(column in row.printed for row in rows)]
    header = ["model", "config", "epochs", "params ours", "published"]
    header += ["GFLOPs ours", "published", *(f"published {column}" for column in columns)]
    lines = []
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
    return markdown_table(header, lines, left=2)


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
