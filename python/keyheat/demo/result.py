"""What the demo found, as one object.

`before` is the sale without the local cache, `after` the sale with it. Operations are those of the
nodes' own `INFO commandstats` (`nodes.py` says which). `upstream_reads_saved` is what the clients
read minus what the nodes were asked to read, fills included.
"""

from typing import Any

from keyheat.demo.board import Cell, Phase
from keyheat.demo.nodes import imbalance
from keyheat.demo.stage import MAX_STALENESS_MS, PhaseRecord, Played
from keyheat.demo.staleness import measure


def work_out(played: Played) -> dict[str, Any]:
    """The summary object."""
    before, after = played.phases[Phase.SALE_BEFORE], played.phases[Phase.SALE_AFTER]
    stale_before = measure(played.reads[Phase.SALE_BEFORE], played.acknowledged_ns)
    stale = measure(played.reads[Phase.SALE_AFTER], played.acknowledged_ns)
    reads_after = played.totals[Cell.READS, Phase.SALE_AFTER]
    upstream_reads = sum(node.get("get", 0) for node in after.calls)
    local_hits = after.stats.get("local_hits", 0)
    asked = after.stats.get("hot_reads") or sum(
        after.stats.get(name, 0) for name in ("local_hits", "fills", "fill_joins", "lapsed")
    )
    return {
        "seconds": round(played.seconds, 1),
        "reads": _total(played, Cell.READS),
        "writes": _total(played, Cell.WRITES),
        "errors": _total(played, Cell.ERRORS),
        "detect_ms": _since(after.hot_since_ns, stale.first_read_ns),
        "protect_ms": _since(after.first_local_hit_ns, stale.first_read_ns),
        "detect_ms_first_half": _since(before.hot_since_ns, stale_before.first_read_ns),
        "imbalance_before": round(imbalance(before.calls), 3),
        "imbalance_after": round(imbalance(after.calls), 3),
        "imbalance_trace": round(imbalance(played.phases[Phase.TRACE_BEFORE].calls), 3),
        "hit_ratio": round(local_hits / reads_after, 4) if reads_after else 0.0,
        "local_hits": local_hits,
        "upstream_reads_saved": reads_after - upstream_reads,
        "proof_lapsed": round(after.stats.get("lapsed", 0) / asked, 5) if asked else 0.0,
        "stale_max_ms": round(stale.max_ms, 3),
        "stale_p99_ms": round(stale.p99_ms, 3),
        "stale_max_ms_first_half": round(stale_before.max_ms, 3),
        "max_staleness_ms": MAX_STALENESS_MS,
        "sale_reads": stale.reads,
        "upstream_ops_before": _ops(before),
        "upstream_ops_after": _ops(after),
        "ops_per_node_before": [sum(node.values()) for node in before.calls],
        "ops_per_node_after": [sum(node.values()) for node in after.calls],
        "sale_seconds_before": round(before.seconds, 1),
        "sale_seconds_after": round(after.seconds, 1),
        "local_cache_reason": played.local_cache_reason,
    }


def _since(event_ns: int | None, start_ns: int | None) -> float | None:
    return None if event_ns is None or start_ns is None else round((event_ns - start_ns) / 1e6, 1)


def _ops(record: PhaseRecord) -> int:
    return sum(sum(node.values()) for node in record.calls)


def _total(played: Played, cell: Cell) -> int:
    return sum(played.totals[cell, phase] for phase in Phase)
