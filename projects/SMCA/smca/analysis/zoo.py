"""The model zoo as Markdown: each config beside the published row that it repeats."""

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml
from fvcore.common.config import CfgNode
from tqdm import tqdm

from ..config import config_names, is_own_model
from .counting import count_model, count_parameters
from .host import Host
from .markdown import markdown_table

# Height and width of the image for which multiply-adds are counted.
SIZE = (800, 1066)
_AP = ("AP", "AP50", "AP75", "APS", "APM", "APL")


def published() -> tuple[list[dict], dict[str, str], str]:
    """Read the published tables, the remarks on their rows by name, and an introduction.

    Returns:
        tables with "table", "source" and "rows", remarks, and the introduction. A row maps columns
        to the paper's entries, None where it prints none; "config" to a path in configs/ without
        ".yaml", or None if the system is not built yet; and "note" to a remark's name.
    """
    text = resources.files(__package__).joinpath("published.yaml").read_text()
    *tables, remarks = yaml.safe_load(text)
    for table in tables:
        table["rows"] = [dict(zip(table["columns"], row, strict=False)) for row in table["rows"]]
    return tables, remarks["notes"], remarks["introduction"]


@dataclass(frozen=True)
class Model:
    """A config with the counts of its model; None if it cannot be built or is not counted."""

    cfg: CfgNode
    parameters: int | None
    multiply_adds: int | None


def count_zoo(host: Host, folder: Path, *, flops: bool = True) -> dict[str, Model]:
    """Count the models of all configs below ``folder``, equal models once.

    Args:
        host: the host that builds the models. The native one leaves out Detectron2's own models.
        folder: folder of the configs.
        flops: whether to count multiply-adds too, which takes minutes.
    """
    counted: dict[str, tuple[int | None, int | None]] = {}
    models = {}
    for name in tqdm(config_names(folder)):
        cfg = host.read(str(folder / f"{name}.yaml"), [])
        key = cfg.MODEL.dump()
        if key not in counted:
            counted[key] = _count(host, cfg, flops)
        models[name] = Model(cfg, *counted[key])
    return models


def _count(host: Host, cfg: CfgNode, flops: bool) -> tuple[int | None, int | None]:
    if not is_own_model(cfg) and host.name != "detectron2":
        return None, None
    if not flops:
        return count_parameters(host.build(cfg, "meta").model).trainable, None
    counts = count_model(host.build(cfg, "cpu"), size=SIZE, activations=False).parts[""]
    return counts.trainable, counts.multiply_adds


def train_command(name: str, cfg: CfgNode) -> str:
    """The command that trains a config on 8 GPUs."""
    engine = "" if is_own_model(cfg) else " --engine detectron2"
    return f"python train_net.py --config-file configs/{name}.yaml{engine} --num-gpus 8"


def model_zoo(host: Host, folder: Path, *, flops: bool = True) -> str:
    """The whole document; see :func:`count_zoo` for the arguments."""
    models = count_zoo(host, folder, flops=flops)
    tables, notes, introduction = published()
    parts = [introduction]
    for table in tables:
        source = table["source"]
        parts.append(f"## {table['table']}\n\n{source[0].upper()}{source[1:]}.\n")
        parts.append(_markdown(table["rows"], models))
        parts.append(_commands([row["config"] for row in table["rows"]], models))
    parts += [f"[^{name}]: {text}\n" for name, text in notes.items()]
    return "\n".join(parts)


def _markdown(rows: list[dict], models: dict[str, Model]) -> str:
    columns = [column for column in _AP if any(row.get(column) for row in rows)]
    header = ["model", "config", "epochs", "params ours", "published"]
    header += ["GFLOPs ours", "published", *(f"published {column}" for column in columns)]
    lines = []
    for row in rows:
        config, parameters, flops = _our_cells(row["config"], models)
        epochs, params, gflops, *scores = (
            str(row.get(key) or "") for key in ("epochs", "params", "gflops", *columns)
        )
        name = row["model"] + (f"[^{row['note']}]" if row.get("note") else "")
        lines.append([name, config, epochs, parameters, params, flops, gflops, *scores])
    return markdown_table(header, lines, left=2)


def _our_cells(config: str | None, models: dict[str, Model]) -> tuple[str, str, str]:
    """Link, parameters and GFLOPs of a config."""
    if config is None:
        return "not built yet", "", ""
    model, link = models[config], f"[{config}](../configs/{config}.yaml)"
    if model.parameters is None:
        return link, "needs Detectron2", ""
    flops = "" if model.multiply_adds is None else f"{model.multiply_adds / 1e9:.1f}"
    return link, f"{model.parameters / 1e6:.2f}", flops


def _commands(configs: list[str | None], models: dict[str, Model]) -> str:
    commands = [train_command(name, models[name].cfg) for name in dict.fromkeys(configs) if name]
    shown = "\n".join(commands)
    return f"<details><summary>Training commands</summary>\n\n```bash\n{shown}\n```\n\n</details>\n"
