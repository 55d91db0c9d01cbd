"""What a protected client counts, and what loading costs, for OpenTelemetry; its API is all that is needed.

    from keyheat.integrations import otel
    otel.instrument(client)               # metrics, from the table in figures.py
    otel.instrument_loader(loader)        # a span for each call of a source

Metrics are observable instruments: the engine counts as it always does, and is read when the SDK collects.
One set of instruments per meter provider, however many clients; in a forked child they show the child's own.

*Spans.* A local answer makes none: it takes less time than a span. A read that goes to the server is an
ordinary command to whatever traces redis-py, a fill included. What is long, and worth a span, is a load
from the source, which `instrument_loader` gives: current while the source is asked, so that the source's own
spans lie within.
"""

import inspect
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Final

from opentelemetry import metrics, trace

from keyheat.integrations.figures import Figure, Figures, Point
from keyheat.integrations.redaction import Redact
from keyheat.mitigate import Loader
from keyheat.mitigate._lifetime import in_forked_child

_SCOPE: Final = "keyheat"

_by_provider: "weakref.WeakKeyDictionary[Any, Figures]" = weakref.WeakKeyDictionary()


def instrument(
    client: Any,
    meter_provider: metrics.MeterProvider | None = None,
    *,
    keys: int = 0,
    redact: Redact | None = None,
) -> None:
    """Have a client's figures collected.

    Args:
        client: A protected client, or its `Handle`. A second one of the same deployment changes nothing.
        meter_provider: By default the global one.
        keys: How many of the hottest keys are shown one by one, with the attribute `keyheat.key`; 0 for
            none. Each key that was ever shown is a time series of its own: keep it small. The first call
            for a provider decides.
        redact: How they are shown; see `keyheat.integrations.redaction`. The first call decides.

    Raises:
        ConfigError: It is not protected, or `keys` is below 0.
    """
    provider = meter_provider or metrics.get_meter_provider()
    figures = _by_provider.get(provider)
    if figures is None:
        figures = Figures(keys=keys, redact=redact)
        figures.add(client)
        _by_provider[provider] = figures
        _register(provider.get_meter(_SCOPE), figures)
    else:
        figures.add(client)


class _Readings:
    """One reading for all instruments: an SDK that collects asks each of them once."""

    def __init__(self, figures: Figures) -> None:
        self._figures = figures
        self._now: dict[Figure, list[Point]] = {}
        self._given: set[Figure] | None = None
        self._fork_hook = in_forked_child(self._forked)
        self._forked()

    def _forked(self) -> None:
        self._lock = threading.Lock()

    def of(self, figure: Figure) -> list[Point]:
        """The points of one figure; a figure asked for again is read anew, and the others with it."""
        with self._lock:
            if self._given is None or figure in self._given:
                self._now, self._given = self._figures.read(), set()
            self._given.add(figure)
            return self._now.get(figure, [])


def _register(meter: metrics.Meter, figures: Figures) -> None:
    readings = _Readings(figures)
    for figure in figures.shown():
        is_counter = figure.kind == "counter"
        create = meter.create_observable_counter if is_counter else meter.create_observable_gauge
        create(figure.name, [_callback(readings, figure)], unit=figure.unit, description=figure.help)


def _callback(
    readings: _Readings, figure: Figure
) -> Callable[[metrics.CallbackOptions], Iterable[metrics.Observation]]:
    def observe(_: metrics.CallbackOptions) -> Iterable[metrics.Observation]:
        return [metrics.Observation(value, dict(labels)) for labels, value in readings.of(figure)]

    return observe


def instrument_loader(
    loader: Loader, tracer_provider: trace.TracerProvider | None = None, *, redact: Redact | None = None
) -> None:
    """Have a span `keyheat.load` for each call of a source by this loader; a second call changes nothing.

    Args:
        loader: The loader.
        tracer_provider: By default the global one.
        redact: How the key is shown in the attribute `keyheat.key`; None shows none.
    """
    if getattr(loader, "_keyheat_traced", False):
        return
    tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)

    def traced(steps: Callable[..., Any]) -> Callable[..., Any]:
        def run(key: bytes | str, load: Callable[[], object], *args: Any, **options: Any) -> Any:
            attributes = {}
            if redact is not None:
                attributes["keyheat.key"] = redact(key.encode() if isinstance(key, str) else key)
            return steps(key, _traced_load(tracer, load, attributes), *args, **options)

        return run

    own: Any = loader
    own.get_steps, own.refresh_steps = traced(loader.get_steps), traced(loader.refresh_steps)
    own._keyheat_traced = True


def _traced_load(
    tracer: trace.Tracer, load: Callable[[], object], attributes: dict[str, str]
) -> Callable[[], object]:
    def run() -> object:
        if inspect.iscoroutinefunction(load):
            return awaited()
        with tracer.start_as_current_span("keyheat.load", attributes=attributes):
            return load()

    async def awaited() -> object:
        with tracer.start_as_current_span("keyheat.load", attributes=attributes):
            result: Any = load()
            return await result

    return run
