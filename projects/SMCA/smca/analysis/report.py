"""The counts of one model as a table in plain text."""

from __future__ import annotations

from .counting import Count, ModelCounts

_HEADER = ("part", "trainable", "parameters", "multiply-adds", "activations")


def parts_table(counts: ModelCounts, depth: int) -> str:
    """A table of a model's parts that have parameters or compute, down to ``depth`` names."""
    rows = [_HEADER]
    for name, count in counts.parts.items():
        level = name.count(".") + 1 if name else 0
        if level <= depth and (count.parameters or count.multiply_adds):
            rows.append(_row("  " * level + (name.rpartition(".")[2] or "all"), count))
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        f"{name:<{first}}"
        + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
        for name, *cells in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    kinds = ", ".join(f"{name} {count / 1e9:.3f} G" for name, count in counts.operators.items())
    lines.append(f"\nMultiply-adds: {kinds}")
    if counts.carried:
        lines.append(
            f"Not among them: {counts.carried / 1e9:.3f} G of channels that the fused attention "
            "carries along,\nfor Gaussians and as zeros"
        )
    return "\n".join(lines)


def _row(name: str, count: Count) -> tuple[str, ...]:
    return (
        name,
        f"{count.trainable / 1e6:.3f} M",
        f"{count.parameters / 1e6:.3f} M",
        f"{count.multiply_adds / 1e9:.3f} G",
        f"{count.activations / 1e6:.3f} M",
    )
