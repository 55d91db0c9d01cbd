"""What a protected client counts, for `prometheus_client`.

    from keyheat.integrations import prometheus
    prometheus_client.REGISTRY.register(prometheus.collector(client))

The figures are read when they are scraped, from the table in `figures.py`; nothing is counted twice.

*Several processes.* Each worker of a pre-fork server has an engine of its own, and `prometheus_client`'s
multiprocess mode leaves custom collectors out. So scrape each worker, or push from each with
`keyheat.integrations.otel`, whose exporters do.
"""

from collections.abc import Iterator
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from keyheat.integrations.figures import KEY_FIGURES, KEY_LABEL, Figure, Figures
from keyheat.integrations.redaction import Redact

_LABELS = ("db.system.name", "server.address", "server.port", "db.namespace")


class KeyheatCollector(Collector):
    """A collector of the figures of protected clients; made by `collector`."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def add(self, client: Any) -> None:
        """Have another client's engine in the figures.

        A registry takes one such collector: a second would give the same names.
        """
        self._figures.add(client)

    def describe(self) -> Iterator[Metric]:
        """The names, so that registering neither reads figures nor clashes unnoticed."""
        for figure in self._figures.shown():
            yield _family(figure)

    def collect(self) -> Iterator[Metric]:
        """The figures now."""
        found = self._figures.read()
        for figure in self._figures.shown():
            family = _family(figure)
            for labels, value in found.get(figure, ()):
                given = dict(labels)
                family.add_metric([given.get(name, "") for name in _labels(figure)], value)
            yield family


def collector(*clients: Any, keys: int = 0, redact: Redact | None = None) -> KeyheatCollector:
    """A collector for a registry.

    Args:
        *clients: Protected clients, or their `Handle`s. Those of one deployment count once.
        keys: How many of the hottest keys are shown one by one, under the label `keyheat_key`; 0 for none.
            Each key that was ever shown is a time series of its own: keep it small.
        redact: How they are shown; see `keyheat.integrations.redaction`.

    Raises:
        ConfigError: One is not protected, or `keys` is below 0.
    """
    figures = Figures(keys=keys, redact=redact)
    for client in clients:
        figures.add(client)
    return KeyheatCollector(figures)


def _labels(figure: Figure) -> tuple[str, ...]:
    return (*_LABELS, KEY_LABEL) if figure in KEY_FIGURES else _LABELS


def _family(figure: Figure) -> CounterMetricFamily | GaugeMetricFamily:
    kind = CounterMetricFamily if figure.kind == "counter" else GaugeMetricFamily
    labels = [name.replace(".", "_") for name in _labels(figure)]
    return kind(figure.prometheus_name, figure.help, labels=labels)
