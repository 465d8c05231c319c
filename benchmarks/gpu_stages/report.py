"""Format the results of GPU checks as tables for a terminal and for docs/PERFORMANCE.md."""

from collections.abc import Sequence
from pathlib import Path

from measuring import ROOT

from smca.analysis.markdown import markdown_table
from smca.config import ConfigError

from .record import DONE, FAILED, code_hash, read_runs

PAGE = ROOT / "docs/PERFORMANCE.md"
# The tables' names of columns whose names in a record are shorter.
TITLES = {"of": "kernels", "of Gaussians": "gradient error, Gaussians"}
BEGIN, END = "<!-- gpu: begin -->\n", "<!-- gpu: end -->\n"


def tables(runs: Sequence[dict]) -> str:
    """Return all measurements as Markdown, by stage, with older runs first."""
    stages = [(run, stage) for run in runs for stage in run["stages"]]
    newest = {stage["stage"]: stage for _, stage in stages}
    shown = [pair for pair in stages if pair[1]["rows"] or pair[1] is newest[pair[1]["stage"]]]
    names = list(newest)
    parts = []
    for run, stage in sorted(shown, key=lambda pair: names.index(pair[1]["stage"])):
        parts.append(f"### GPU: {stage['stage']}\n\n{_origin(run, stage)}")
        by_table: dict[str, list[dict]] = {}
        for row in stage["rows"]:
            by_table.setdefault(row["table"], []).append(row)
        if compared := by_table.get("attention"):
            by_table["attention"] = _worst(compared)
        for table, rows in by_table.items():
            parts.append(f"{table[0].upper()}{table[1:]}:\n")
            parts += _by_columns([{k: v for k, v in r.items() if k != "table"} for r in rows])
    return "\n".join(parts)


def _by_columns(rows: Sequence[dict]) -> list[str]:
    """Return a table for each set of columns."""
    groups: dict[tuple[str, ...], list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row), []).append(row)
    return [
        markdown_table(
            [TITLES.get(name, name) for name in columns],
            [[_cell(name, row[name]) for name in columns] for row in group],
        )
        for columns, group in groups.items()
    ]


def _worst(rows: Sequence[dict]) -> list[dict]:
    """Merge the cases of the attention into a row for each precision, with the largest errors."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        if "error" not in row:
            groups.setdefault((row["map"], row["precision"], row["dropout"]), []).append(row)
    found = []
    for (shape, precision, dropout), cases in groups.items():
        kernels = {kernel for case in cases for kernel in case["kernels"].split()}
        errors = ("output error", "gradient error", "of Gaussians")
        found.append(
            {
                "map": shape,
                "precision": precision,
                "dropout": dropout,
                "kernels": ", ".join(sorted(map(_short, kernels))),
                **{name: max(float(case[name]) for case in cases) for name in errors},
                "cases": len(cases),
                "passed": all(case["passed"] for case in cases),
            }
        )
    return found + [row for row in rows if "error" in row]


def _short(kernel: str) -> str:
    """Return flash, efficient, cudnn or math, with "backward" for kernels of the backward pass."""
    name = kernel.removeprefix("_scaled_dot_product_").replace("_attention", "")
    return name.replace("_for_cpu", "").replace("_", " ")


def _origin(run: dict, stage: dict) -> str:
    """Return a line with the origin of a stage's numbers, and with the status of the stage."""
    how = stage["status"] if stage["status"] == DONE else f"**{stage['status']}**"
    took = f", {stage['seconds']:.0f} s" if "seconds" in stage else ""
    reason = f": {stage['reason']}" if stage["reason"] else ""
    return f"{run['machine']}; {run['software']}; code {run['code']}. {how}{took}{reason}.\n"


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**" if name == "passed" else "no"
    if isinstance(value, dict):  # a timing
        return f"{value['median']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)[:70]


def failures(stages: Sequence[dict]) -> list[str]:
    """Return a line for each check that did not pass, and each stage or measurement that failed."""
    found = []
    for stage in stages:
        # A check that was left out has not passed.
        unchecked = stage["stage"] == "right" and stage["reason"]
        if stage["status"] == FAILED or unchecked:
            found.append(f"FAIL  {stage['stage']}: {stage['reason']}")
        for row in stage["rows"]:
            if row.get("passed") is False or "error" in row:
                said = ", ".join(
                    f"{key} {_cell('', value)}" for key, value in row.items() if key != "passed"
                )
                found.append(f"FAIL  {stage['stage']}: {said}")
    return found


def main(files: Sequence[Path], *, docs: bool) -> int:
    """Print the tables of result files, oldest first; with ``docs`` also put them into the page.

    Raises:
        FileNotFoundError: a file does not exist.
        ConfigError: no GPU check wrote a file, or the page lacks the two marks.
    """
    runs = [run for path in files for run in read_runs(path)]
    text = tables(runs)
    print(text)
    if others := {run["code"] for run in runs} - {code_hash()}:
        print(f"measured with other code than this ({code_hash()}): {', '.join(sorted(others))}")
    if docs:
        page = PAGE.read_text()
        if BEGIN not in page or END not in page:
            raise ConfigError(f"{PAGE} lacks the lines {BEGIN.strip()} and {END.strip()}")
        PAGE.write_text(f"{page.split(BEGIN)[0]}{BEGIN}{text}\n{END}{page.split(END)[1]}")
    return 0
