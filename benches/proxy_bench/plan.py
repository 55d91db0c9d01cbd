"""What is measured, in which order, and which ratios are held to a target."""

from dataclasses import dataclass
from typing import Final

CLIENTS: Final = 50
UNIFORM_KEYS: Final = 100_000
HOT_KEY: Final = "bench:hot"
# Share of the requests that a cached run must find in the proxy's memory to count as one.
LOCAL_SHARE_MIN: Final = 0.99

# A server in C that does nothing but answer: what the others are above it.
BARE: Final = "bare epoll server"
# A proxy in C that does nothing but forward.
FORWARDER: Final = "bare forwarder"

# Neighbours in these lists are measured one right after the other (the order turns round every
# round), so what is put into one ratio stands side by side.
ORDER: Final[dict[str, list[str]]] = {
    "hot": [
        "haproxy",
        "envoy",
        "twemproxy",
        "keyheat, local cache off",
        "keyheat, all cores",
        "keyheat",
        "server",
        BARE,
    ],
    "uniform": [
        "server",
        "haproxy",
        "twemproxy",
        "envoy",
        "keyheat",
        FORWARDER,
        "keyheat, counting off",
        "keyheat, all cores",
    ],
}

# (value bytes, pipeline) -> requests of one measurement, about a second of them: what disturbs tends to
# last as long as a run, so many short ones tell more than a few long ones.
REQUESTS: Final[dict[tuple[int, int], int]] = {
    (64, 1): 100_000,
    (64, 16): 600_000,
    (1024, 1): 100_000,
    (1024, 16): 400_000,
    (16_384, 1): 64_000,
    (16_384, 16): 96_000,
}


@dataclass(frozen=True)
class Case:
    """One thing that is measured again and again."""

    value_bytes: int
    pipeline: int
    workload: str
    peer: str

    def __str__(self) -> str:
        """`64 B P1 hot keyheat`: what `--only` is matched with."""
        return f"{size_name(self.value_bytes)} P{self.pipeline} {self.workload} {self.peer}"

    @property
    def is_cached(self) -> bool:
        """Whether the proxy must answer this from its memory."""
        return self.workload == "hot" and self.peer in {"keyheat", "keyheat, all cores"}

    @property
    def is_bare(self) -> bool:
        """Whether it is answered by a server that is not the benchmark's."""
        return self.peer == BARE


@dataclass(frozen=True)
class Target:
    """A bound on the ratio of the CPU per request of two peers, at one pipeline."""

    title: str
    workload: str
    above: str
    below: str
    pipeline: int
    bound: float | None
    value_bytes: int = 64

    def cases(self) -> tuple[Case, Case]:
        """Numerator and denominator."""
        return (
            Case(self.value_bytes, self.pipeline, self.workload, self.above),
            Case(self.value_bytes, self.pipeline, self.workload, self.below),
        )


TARGETS: Final = [
    Target("hot GET answered locally / the server's own", "hot", "keyheat", "server", 1, 1.0),
    Target("hot GET answered locally / the server's own", "hot", "keyheat", "server", 16, 0.65),
    # No target: what is left to gain.
    Target("hot GET answered locally / bare epoll server", "hot", "keyheat", BARE, 1, None),
    Target("hot GET answered locally / bare epoll server", "hot", "keyheat", BARE, 16, None),
    Target("forwarded GET / twemproxy", "uniform", "keyheat", "twemproxy", 1, 0.93),
    Target("forwarded GET / twemproxy", "uniform", "keyheat", "twemproxy", 16, 0.45),
    Target("forwarded GET / twemproxy", "uniform", "keyheat", "twemproxy", 1, 0.8, 16_384),
    Target("forwarded GET / twemproxy", "uniform", "keyheat", "twemproxy", 16, 0.8, 16_384),
    Target("forwarded GET / Envoy", "uniform", "keyheat", "envoy", 1, 0.5),
    Target("forwarded GET / Envoy", "uniform", "keyheat", "envoy", 16, 0.5),
    # No target: what is left to gain.
    Target("forwarded GET / bare forwarder", "uniform", "keyheat", FORWARDER, 1, None),
    Target("forwarded GET / bare forwarder", "uniform", "keyheat", FORWARDER, 16, None),
    Target("bare forwarder / Envoy", "uniform", FORWARDER, "envoy", 1, None),
    Target("counting on / off, forwarded", "uniform", "keyheat", "keyheat, counting off", 1, 1.05),
    Target("counting on / off, forwarded", "uniform", "keyheat", "keyheat, counting off", 16, 1.05),
    # No target: what shards on every core cost.
    Target("a shard per core / default, hot", "hot", "keyheat, all cores", "keyheat", 1, None),
    Target("a shard per core / default, hot", "hot", "keyheat, all cores", "keyheat", 16, None),
    Target("a shard per core / default, forwarded", "uniform", "keyheat, all cores", "keyheat", 1, None),
    Target("a shard per core / default, forwarded", "uniform", "keyheat, all cores", "keyheat", 16, None),
]


def size_name(value_bytes: int) -> str:
    """`64 B`, `16 KiB`."""
    return f"{value_bytes} B" if value_bytes < 1024 else f"{value_bytes // 1024} KiB"
