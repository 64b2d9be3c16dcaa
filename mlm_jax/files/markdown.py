"""Markdown, as reports contain it: tables, and anchors of headings."""

import re
from collections.abc import Sequence


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], num_text_columns: int = 1) -> str:
    """A Markdown table whose columns are also aligned when it is read as plain text.

    Args:
      titles: of the columns.
      rows: the cells of each row, as many as there are titles. A vertical bar in a cell is escaped.
      num_text_columns: the number of columns with text, which come first and are aligned to the left; all other columns
        hold numbers and are aligned to the right.

    Returns:
      The lines of the table, each with a newline at its end.
    """
    rules = ['---' if i < num_text_columns else '---:' for i in range(len(titles))]
    cells = [[cell.replace('|', r'\|') for cell in row] for row in (titles, rules, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return ''.join(f'| {line} |\n' for line in lines)


def anchor(heading: str) -> str:
    """What links of the same page call a heading: its words in small letters, with hyphens, as GitHub makes it."""
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
