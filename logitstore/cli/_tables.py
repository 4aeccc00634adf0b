"""Plain tables that fit a terminal, and text that cannot harm one."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size


def printable(text: str, keep: str = "") -> str:
    """Text with control, format and surrogate characters written as escapes: no terminal acts on them.

    ``keep`` holds characters that stay, e.g. a line feed.
    """
    return "".join(
        c if c in keep or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") else ascii(c)[1:-1]
        for c in text
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int = 0) -> list[str]:
    """Aligned columns, two spaces apart; columns that do not fit into ``width`` cells are left out."""
    grid = [list(head), *map(list, rows)]
    widths = [max(cell_len(r[i]) if i < len(r) else 0 for r in grid) for i in range(len(head))]
    while width and len(widths) > 2 and sum(widths) + 2 * len(widths) > width:
        last = len(widths) - 2  # the final column stays
        del widths[last]
        for row in grid:
            del row[last]
    return ["  ".join(set_cell_size(c, w) for c, w in zip(r, widths, strict=True)).rstrip() for r in grid]
