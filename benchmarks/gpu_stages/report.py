"""The tables of GPU checks, for a terminal and for docs/PERFORMANCE.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from measuring import ROOT

from smca.analysis.markdown import markdown_table
from smca.config import ConfigError

from .record import DONE, FAILED, code_hash

PAGE = ROOT / "docs/PERFORMANCE.md"
BEGIN, END = "<!-- gpu: begin -->\n", "<!-- gpu: end -->\n"


def tables(runs: Sequence[dict]) -> str:
    """All that was measured, as Markdown: of each table the newest run that has it."""
    newest: dict[str, tuple[dict, dict]] = {}
    for run in runs:
        for stage in run["stages"]:
            newest[stage["stage"]] = run, stage
    parts = []
    for name, (run, stage) in newest.items():
        parts.append(f"### {name}\n\n{_origin(run, stage)}")
        by_table: dict[tuple[str, tuple], list[dict]] = {}
        for row in stage["rows"]:
            row = dict(row)
            table = row.pop("table")
            by_table.setdefault((table, tuple(row)), []).append(row)
        for (table, columns), rows in by_table.items():
            lines = [[_cell(name, row[name]) for name in columns] for row in rows]
            parts.append(f"{table[0].upper()}{table[1:]}:\n\n{markdown_table(columns, lines)}")
    return "\n".join(parts)


def _origin(run: dict, stage: dict) -> str:
    """Where the numbers of a stage come from, and what came of it."""
    how = stage["status"] if stage["status"] == DONE else f"**{stage['status']}**"
    took = f", {stage['seconds']:.0f} s" if "seconds" in stage else ""
    reason = f": {stage['reason']}" if stage["reason"] else ""
    return f"{run['machine']}; {run['software']}; code {run['code']}; {how}{took}{reason}.\n"


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**" if name == "passed" else "no"
    if isinstance(value, dict):  # a timing
        return f"{value['median']:.4g} ({value['low']:.4g} to {value['high']:.4g})"
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def failures(stages: Sequence[dict]) -> list[str]:
    """A line for each check that did not pass, and for each stage or measurement that failed."""
    found = []
    for stage in stages:
        if stage["status"] == FAILED:
            found.append(f"FAIL  {stage['stage']}: {stage['reason']}")
        for row in stage["rows"]:
            if row.get("passed") is False or "error" in row:
                said = ", ".join(
                    f"{key} {_cell('', value)}" for key, value in row.items() if key != "passed"
                )
                found.append(f"FAIL  {stage['stage']}: {said}")
    return found


def main(files: Sequence[Path], *, docs: bool) -> int:
    """Print the tables of result files, oldest first; with ``docs`` put them into the page.

    Raises:
        FileNotFoundError: a file that is not there.
        ConfigError: a file that is no GPU check's, or a page without the two marks.
    """
    runs = []
    for path in files:
        try:
            runs += json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path} is not a gpu_check.json: {error}") from error
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
