#!/usr/bin/env python3
"""Write docs/MODEL_ZOO.md: each config beside the published row that it repeats.

The published rows and all remarks are in tools/published_models.yaml: change them there and run
this again. It takes minutes. Detectron2's own models are counted only where it is installed.

Examples:
    python tools/make_model_zoo.py
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from fvcore.common.config import CfgNode
from tqdm import tqdm

from smca.analysis.counting import count_model, count_parameters
from smca.analysis.host import NATIVE, Host
from smca.analysis.markdown import markdown_table
from smca.config import config_names, is_own_model
from smca.engine.guard import guarded
from smca.hosts import choose_engine, load

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/MODEL_ZOO.md"
CONFIGS = ROOT / "configs"
# Height and width of the image for which multiply-adds are counted.
SIZE = (800, 1066)
AP = ("AP", "AP50", "AP75", "APS", "APM", "APL")


def run() -> None:
    native = choose_engine("auto")[0] == "native"
    host = NATIVE if native else load("detectron2", "analysis").DETECTRON2
    PAGE.write_text(model_zoo(count_zoo(host)), encoding="utf-8")
    print(PAGE)


def published() -> tuple[list[dict], dict[str, str], str]:
    """Read the published tables, the remarks on their rows by name, and an introduction.

    Returns:
        tables with "table", "source" and "rows", remarks, and the introduction. A row maps columns
        to the paper's entries, None where it prints none; "config" to a path in configs/ without
        ".yaml"; and "note" to a remark's name.
    """
    text = Path(__file__).with_name("published_models.yaml").read_text(encoding="utf-8")
    *tables, remarks = yaml.safe_load(text)
    for table in tables:
        table["rows"] = [dict(zip(table["columns"], row, strict=False)) for row in table["rows"]]
    return tables, remarks["notes"], remarks["introduction"]


class Model(NamedTuple):
    """A config with the counts of its model; None if it cannot be built or is not counted."""

    cfg: CfgNode
    parameters: int | None
    multiply_adds: int | None


def count_zoo(host: Host, *, flops: bool = True) -> dict[str, Model]:
    """Count the models of all configs, equal models once.

    Args:
        host: the host that builds the models. The native one leaves out Detectron2's own models.
        flops: whether to count multiply-adds too, which takes minutes.
    """
    counted: dict[str, tuple[int | None, int | None]] = {}
    models = {}
    for name in tqdm(config_names(CONFIGS)):
        cfg = host.read(str(CONFIGS / f"{name}.yaml"), [])
        key = cfg.MODEL.dump()
        if key not in counted:
            counted[key] = count_one(host, cfg, flops)
        models[name] = Model(cfg, *counted[key])
    return models


def count_one(host: Host, cfg: CfgNode, flops: bool) -> tuple[int | None, int | None]:
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


def model_zoo(models: dict[str, Model]) -> str:
    """Return the whole page."""
    tables, notes, introduction = published()
    parts = [introduction]
    for table in tables:
        source = table["source"]
        parts.append(f"## {table['table']}\n\n{source[0].upper()}{source[1:]}.\n")
        parts.append(rows_table(table["rows"], models))
        parts.append(commands([row["config"] for row in table["rows"]], models))
    parts += [f"[^{name}]: {text}\n" for name, text in notes.items()]
    return "\n".join(parts)


def rows_table(rows: list[dict], models: dict[str, Model]) -> str:
    columns = [column for column in (*AP, "relative") if any(row.get(column) for row in rows)]
    header = ["model", "config", "epochs", "params ours", "published"]
    header += ["GFLOPs ours", "published", *(f"published {column}" for column in columns)]
    lines = []
    for row in rows:
        config, parameters, flops = our_cells(row["config"], models)
        epochs, params, gflops, *scores = (
            str(row.get(key) or "") for key in ("epochs", "params", "gflops", *columns)
        )
        name = row["model"] + (f"[^{row['note']}]" if row.get("note") else "")
        lines.append([name, config, epochs, parameters, params, flops, gflops, *scores])
    return markdown_table(header, lines, left=2)


def our_cells(config: str, models: dict[str, Model]) -> tuple[str, str, str]:
    """Link, parameters and GFLOPs of a config."""
    model, link = models[config], f"[{config}](../configs/{config}.yaml)"
    if model.parameters is None:
        return link, "needs Detectron2", ""
    flops = "" if model.multiply_adds is None else f"{model.multiply_adds / 1e9:.1f}"
    return link, f"{model.parameters / 1e6:.2f}", flops


def commands(configs: list[str], models: dict[str, Model]) -> str:
    commands = [train_command(name, models[name].cfg) for name in dict.fromkeys(configs)]
    shown = "\n".join(commands)
    return f"<details><summary>Training commands</summary>\n\n```bash\n{shown}\n```\n\n</details>\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(argv)
    return guarded(run)


if __name__ == "__main__":
    sys.exit(main())
