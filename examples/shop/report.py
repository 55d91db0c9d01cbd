"""The table of two sales, as text."""

from collections.abc import Callable
from typing import Any

from examples.shop.sale import Sale

_LABEL = 34
_CELL = 20
_KEYS = 6
# Of the hot keys' columns; in all no wider than a terminal of 80.
_WIDTHS = ("<12", ">8", ">9", ">6", ">12", ">8", "")


def table(before: Sale, after: Sale, *, visitors: int) -> str:
    """Both sales side by side, and the hot keys as keyheat explains them."""
    rows = [
        ("", "without keyheat", "with keyheat"),
        *((label, form(before), form(after)) for label, form in _ROWS),
    ]
    lines = [
        "",
        f"A flash sale: {visitors} visitors for {before.seconds:.0f} s, 70 % of the pages that of one item,",
        "its price rewritten ten times a second.",
        "",
        *(f"{label:<{_LABEL}}{left:>{_CELL}}{right:>{_CELL}}".rstrip() for label, left, right in rows),
        "",
        *_hot(after),
        "",
    ]
    return "\n".join(lines)


_Form = Callable[[Sale], str]
_ROWS: tuple[tuple[str, _Form], ...] = (
    ("requests/s", lambda sale: f"{sale.requests_per_s:,.0f}"),
    ("latency p50", lambda sale: f"{sale.p50_ms:.1f} ms"),
    ("latency p99", lambda sale: f"{sale.p99_ms:.1f} ms"),
    ("Redis commands per request", lambda sale: f"{sale.commands_per_request:.2f}"),
    ("CPU of the shop per request", lambda sale: f"{sale.shop_cpu_ms_per_request:.3f} ms"),
    ("CPU of Valkey per request", lambda sale: f"{sale.valkey_cpu_ms_per_request:.3f} ms"),
    ("loads from the catalogue", lambda sale: f"{sale.source_loads:,}"),
    ("  of these, the item on sale", lambda sale: f"{sale.sale_item_loads:,}"),
    ("sold, of a stock of", lambda sale: f"{sale.sold} of {sale.stock}"),
    ("oversold", lambda sale: f"{sale.oversold}"),
    ("payments that waited in vain", lambda sale: f"{sale.turned_away}"),
    ("requests that failed", lambda sale: f"{sale.failed}"),
)


def _hot(sale: Sale) -> list[str]:
    if not sale.hot_keys:
        return ["No key was hot."]
    stats = sale.stats
    heads = ("key", "reads/s", "writes/s", "share", "from memory", "joined", "  what is done")
    rows = [heads, *(_hot_row(key) for key in sale.hot_keys[:_KEYS])]
    shown = ["".join(f"{cell:{width}}" for cell, width in zip(row, _WIDTHS, strict=True)) for row in rows]
    more = len(sale.hot_keys) - _KEYS
    return [
        "Hot keys, as keyheat explains them:",
        "",
        *shown,
        *([f"and {more} more"] if more > 0 else []),
        "",
        f"{stats['local_hits']:,} reads were answered from memory and {stats['joins']:,} joined another's, "
        f"of {stats['hot_reads']:,}",
        f"reads of hot keys; none older than {stats['max_staleness_ms']:g} ms.",
    ]


def _hot_row(key: dict[str, Any]) -> tuple[str, ...]:
    return (
        key["key"],
        f"{key['reads_per_s']:,.0f}",
        f"{key['writes_per_s']:,.0f}",
        f"{key['share']:.0%}",
        f"{key['local_hits']:,}",
        f"{key['joins']:,}",
        "  " + (", ".join(key["plan"]) or ("nothing: it is a lock" if key["is_lock"] else "nothing")),
    )
