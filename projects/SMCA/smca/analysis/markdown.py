"""Tables of Markdown."""

from collections.abc import Sequence


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """A table whose first ``left`` columns are flush left, and the others flush right.

    Cells show their text as it is: "|" does not end a cell, and "<" does not begin HTML.
    """
    rule = ["---"] * left + ["---:"] * (len(head) - left)
    lines = [[_shown(cell) for cell in line] for line in (head, rule, *rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(cell: str) -> str:
    return " ".join(cell.replace("|", r"\|").replace("<", "&lt;").splitlines())
