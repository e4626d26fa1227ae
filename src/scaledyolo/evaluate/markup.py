"""Small pieces of HTML. Every piece escapes what it is given; a :class:`Html` has been escaped already."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isnan

_LONGEST_WHOLE_TABLE = 16  # rows; a longer one scrolls in its frame


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table: what is shown and, where that is no plain text, what it is sorted by."""

    shown: str
    key: float | None = None
    text: bool = False  # words: to the left, may wrap


def safe(text: str) -> str:
    """Escaped, unless it is markup."""
    return text if isinstance(text, Html) else escape(text)


def shortened(name: str, longest: int) -> str:
    """The name, cut to that many characters."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def number(value: float, digits: int = 3) -> Cell:
    """A figure with its sorting key; a dash where there is none."""
    return Cell("–", -1.0) if isnan(value) else Cell(f"{value:.{digits}f}", value)


def count(value: int) -> Cell:
    """A whole number with thousands apart."""
    return Cell(f"{value:,}".replace(",", "\u202f"), value)


def words(text: str) -> Cell:
    """A cell of running text."""
    return Cell(text, text=True)


def bar(value: float, low: float, high: float) -> Cell:
    """A bar from 0 to 1 with the range of the figure as a whisker."""
    if isnan(value):
        return Cell("", -1.0)
    whisker = ""
    if not (isnan(low) or isnan(high)):
        left, right = (min(max(edge, 0.0), 1.0) * 100 for edge in (low, high))
        whisker = f'<u style="left:{left:.1f}%;width:{max(right - left, 0.5):.1f}%"></u>'
    return Cell(Html(f'<span class="bar"><i style="width:{value * 100:.1f}%"></i>{whisker}</span>'), value, text=True)


def table(head: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, sortable: bool = False) -> Html:
    """A table in a frame that scrolls; cells given as str are plain text."""
    cells = [[Cell(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    text_columns = {column for row in cells for column, cell in enumerate(row) if cell.text}
    header = "".join(f"<th{_class(column in text_columns)}>{safe(title)}</th>" for column, title in enumerate(head))
    body = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>" for row in cells)
    kind = ' class="sortable"' if sortable else ""
    frame = "scroll tall" if len(rows) > _LONGEST_WHOLE_TABLE else "scroll"
    return Html(
        f'<div class="{frame}"><table{kind}><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _class(text: bool) -> str:
    return ' class="text"' if text else ""


def _cell(cell: Cell) -> str:
    key = "" if cell.key is None else f' data-key="{cell.key:g}"'
    return f"<td{_class(cell.text)}{key}>{safe(cell.shown)}</td>"


def cards(items: Sequence[tuple[str, str, str]]) -> Html:
    """Headline figures: name, value, small print."""
    inner = "".join(
        f'<div class="card"><span>{safe(name)}</span><b>{safe(value)}</b><span>{safe(note)}</span></div>'
        for name, value, note in items
    )
    return Html(f'<div class="cards">{inner}</div>')


def svg_figure(svg: str, description: str, kind: str = "") -> Html:
    """A plot as an embedded picture: ids inside cannot collide with those of another plot."""
    data = base64.b64encode(svg.encode()).decode()
    return Html(
        f'<figure class="{safe(kind)}"><img alt="{safe(description)}" src="data:image/svg+xml;base64,{data}"></figure>'
    )


def pair(*parts: str) -> Html:
    """Parts side by side where there is room."""
    return Html(f'<div class="pair">{"".join(f"<div>{safe(part)}</div>" for part in parts)}</div>')


def paragraph(text: str) -> Html:
    """A paragraph."""
    return Html(f"<p>{safe(text)}</p>")


def section(title: str, *parts: str) -> Html:
    """A part of the page with a heading that can be linked to."""
    return Html(
        f'<section id="{anchor(title)}"><h2>{safe(title)}</h2>{"".join(safe(part) for part in parts)}</section>'
    )


def anchor(title: str) -> str:
    """The id of a section."""
    return escape(title.lower().replace(" ", "-"))


def contents(titles: Sequence[str]) -> Html:
    """Links to the sections."""
    links = "".join(f'<a href="#{anchor(title)}">{safe(title)}</a>' for title in titles)
    return Html(f"<nav>{links}</nav>")


def details(items: Mapping[str, str]) -> Html:
    """What was evaluated, how."""
    inner = "".join(f"<li>{safe(name)} <b>{safe(value)}</b></li>" for name, value in items.items())
    return Html(f'<ul class="details">{inner}</ul>')
