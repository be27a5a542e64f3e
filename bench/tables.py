"""Rows of figures as aligned Markdown, which reads well in a terminal too. Knows only text."""

from collections.abc import Sequence


def aligned(headings: Sequence[str], rows: Sequence[Sequence[str]], num_left: int = 1) -> str:
    """Returns a Markdown table with padded columns, the first `num_left` aligned to the left."""
    widths = [max(len(row[column]) for row in (headings, *rows)) for column in range(len(headings))]
    left, right = widths[:num_left], widths[num_left:]
    rule = [*("-" * width for width in left), *("-" * (width - 1) + ":" for width in right)]

    def line(cells: Sequence[str]) -> str:
        padded = [cell.ljust(width) for cell, width in zip(cells[:num_left], left, strict=True)]
        padded += [cell.rjust(width) for cell, width in zip(cells[num_left:], right, strict=True)]
        return f"| {' | '.join(padded)} |"

    return "\n".join(line(row) for row in (headings, rule, *rows))


def number(value: float) -> str:
    """Returns a figure with three significant digits, or all digits before the point if those are more."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percent(share: float) -> str:
    """Returns a share as a percentage."""
    return f"{share * 100:.0f} %"
