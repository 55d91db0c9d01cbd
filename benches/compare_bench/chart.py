"""The chart of `docs/compare.md`: bars in SVG, written by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

_ROW: Final = 24
_LEFT: Final = 150
_BAR: Final = 200
_VALUE: Final = 62
_TOP: Final = 64
_SERVERS: Final = "#8a94a6"
_PROXIES: Final = "#d9622b"
_AGE: Final = "#3b6fb5"
_FONT: Final = 'font-family="system-ui, sans-serif"'


@dataclass(frozen=True)
class Bar:
    """A row: its name, and for each panel the parts that are stacked."""

    name: str
    panels: Sequence[Sequence[float]]


@dataclass(frozen=True)
class Panel:
    """A column of bars."""

    title: str
    colours: Sequence[str]
    digits: int


PANELS: Final = (
    Panel("CPU µs per request", (_SERVERS, _PROXIES), 2),
    Panel("memory, MiB", (_SERVERS, _PROXIES), 0),
    Panel("oldest read, ms", (_AGE,), 1),
)


def draw(groups: dict[str, list[Bar]]) -> str:
    """The whole chart: a group of rows per workload."""
    width = _LEFT + len(PANELS) * (_BAR + _VALUE) + 10
    parts: list[str] = []
    y = 34
    for title, bars in groups.items():
        parts += _group(title, bars, y)
        y += _TOP + len(bars) * _ROW + 14
    legend = _text(10, 22, "servers", _SERVERS) + _text(66, 22, "proxies", _PROXIES)
    legend += _text(124, 22, "age of what is read", _AGE)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y}" width="{width}" height="{y}" '
        f'{_FONT} font-size="12"><rect width="{width}" height="{y}" fill="#ffffff"/>\n'
        + legend
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _group(title: str, bars: list[Bar], top: int) -> list[str]:
    parts = [f'<text x="10" y="{top + 20}" font-size="15" font-weight="600">{escape(title)}</text>']
    for number, panel in enumerate(PANELS):
        x = _LEFT + number * (_BAR + _VALUE)
        parts.append(_text(x, top + 44, panel.title, "#444444"))
        most = max(sum(bar.panels[number]) for bar in bars) or 1.0
        for row, bar in enumerate(bars):
            parts += _bar(x, top + _TOP - 10 + row * _ROW, panel, bar.panels[number], most)
    for row, bar in enumerate(bars):
        parts.append(_text(10, top + _TOP + 4 + row * _ROW, bar.name, "#222222"))
    return parts


def _bar(x: float, y: float, panel: Panel, values: Sequence[float], most: float) -> list[str]:
    parts, at = [], x
    for value, colour in zip(values, panel.colours, strict=True):
        size = value / most * _BAR
        parts.append(f'<rect x="{at:.1f}" y="{y}" width="{size:.1f}" height="{_ROW - 8}" fill="{colour}"/>')
        at += size
    parts.append(_text(at + 5, y + 13, f"{sum(values):,.{panel.digits}f}", "#222222"))
    return parts


def _text(x: float, y: float, text: str, colour: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" fill="{colour}">{escape(text)}</text>'
