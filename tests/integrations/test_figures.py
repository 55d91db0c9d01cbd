"""The figures of a protected client, as OpenTelemetry and Prometheus show them."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import prometheus_client
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from keyheat.errors import ConfigError
from keyheat.integrations import otel, prometheus
from keyheat.integrations.figures import FIGURES, KEY_FIGURES, Figures
from keyheat.integrations.redaction import hashed, prefixed, shown
from keyheat.mitigate import Loader
from keyheat.server.cluster import EmbeddedCluster
from keyheat.server.embedded import EmbeddedServer
from tests.integrations.conftest import Protected
from tests.integrations.hot import until_local

# What `stats()` says besides figures, and the one figure that comes from `explain()`.
NOT_IN_STATS = {"proof_age_ms"}


@pytest.fixture
def reader() -> InMemoryMetricReader:
    """An exporter that keeps what was collected."""
    return InMemoryMetricReader()


@pytest.fixture
def provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    """A meter provider that is shut down in the end."""
    made = MeterProvider(metric_readers=[reader])
    yield made
    made.shutdown()


def collected(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    """The data points by name."""
    data = reader.get_metrics_data()
    found: dict[str, list[Any]] = {}
    for resource in data.resource_metrics if data else []:
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                found[metric.name] = list(metric.data.data_points)
    return found


def scraped(registry: prometheus_client.CollectorRegistry) -> dict[str, list[Any]]:
    """The samples by name."""
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(prometheus_client.generate_latest(registry).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def busy(protected: Protected, address: str, key: str = "item:7") -> Any:
    """A client with one hot key that is answered from memory."""
    client = protected(address)
    client.set(key, "x")
    until_local(client.keyheat, lambda: client.get(key))
    return client


# ---------------------------------------------------------------- the table


def test_every_figure_of_the_engine_is_in_the_table(protected: Protected, valkey: str) -> None:
    client = busy(protected, valkey)
    known = {figure.source for figure in FIGURES}
    assert known - NOT_IN_STATS == set(client.keyheat.stats())
    assert {figure.source for figure in KEY_FIGURES} <= set(client.keyheat.hot_keys()[0])


def test_names_differ_and_follow_the_conventions() -> None:
    names = [figure.name for figure in (*FIGURES, *KEY_FIGURES)]
    assert (
        len(set(names)) == len({figure.prometheus_name for figure in (*FIGURES, *KEY_FIGURES)}) == len(names)
    )
    for figure in (*FIGURES, *KEY_FIGURES):
        assert re.fullmatch(r"keyheat\.client(\.[a-z_]+)+", figure.name)
        assert figure.help.endswith(".")
        assert figure.unit in {"By", "s", "1", "By/s"} or re.fullmatch(r"\{[a-z]+\}(/s)?", figure.unit)


def test_both_show_the_same_figures(
    protected: Protected, valkey: str, reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    client = busy(protected, valkey)
    client.keyheat.counting = False
    registry = prometheus_client.CollectorRegistry()
    registry.register(prometheus.collector(client))
    otel.instrument(client, provider)
    by_otel, by_prometheus = collected(reader), scraped(registry)
    assert set(by_otel) == {figure.name for figure in FIGURES}
    for figure in FIGURES:
        suffix = "_total" if figure.kind == "counter" else ""
        (point,) = by_otel[figure.name]
        (sample,) = by_prometheus[figure.prometheus_name + suffix]
        assert {name.replace(".", "_"): value for name, value in point.attributes.items()} == sample.labels
        # What time alone changes was read a moment later.
        if figure.unit != "s" and figure.source not in {"heartbeats", "registrations"}:
            assert point.value == sample.value, figure.name
    assert by_otel["keyheat.client.local_hits"][0].value == client.keyheat.stats()["local_hits"]
    assert by_otel["keyheat.client.hot_keys"][0].value == 1
    assert by_otel["keyheat.client.staleness.bound"][0].value == pytest.approx(0.1)
    assert 0 <= by_otel["keyheat.client.proof.age"][0].value < 5
    host, port = valkey.split(":")
    assert by_otel["keyheat.client.commands"][0].attributes == {
        "db.system.name": "redis",
        "server.address": host,
        "server.port": port,
        "db.namespace": "0",
    }


def test_what_is_collected_later_is_later(
    protected: Protected, valkey: str, reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    client = busy(protected, valkey)
    otel.instrument(client, provider)
    before = collected(reader)["keyheat.client.local_hits"][0].value
    until_local(client.keyheat, lambda: client.get("item:7"))
    assert collected(reader)["keyheat.client.local_hits"][0].value > before


def test_a_cluster_is_shown_with_the_proof_of_all_its_nodes(
    cluster: EmbeddedCluster, own_settings: dict[str, Any]
) -> None:
    import redis  # noqa: PLC0415

    from keyheat.client import protect  # noqa: PLC0415

    host, port = cluster.primaries[0].address.split(":")
    client: Any = protect(redis.RedisCluster(host=host, port=int(port)), **own_settings)
    for key in ("a", "b", "c", "d"):
        until_local(client.keyheat, partial(client.get, key))
    figures = Figures()
    figures.add(client)
    found = {figure.name: points for figure, points in figures.read().items()}
    ((_, age_s),) = found["keyheat.client.proof.age"]
    assert 0 <= age_s < 5
    (((*labels, _), _),) = found["keyheat.client.hot_keys"]
    assert dict(labels)["server.port"] in {str(node.port) for node in cluster.primaries}
    client.close()


# ---------------------------------------------------------------- whose figures


def test_clients_of_one_deployment_are_counted_once(
    protected: Protected, valkey: str, reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    client, twin = busy(protected, valkey), protected(valkey)
    for each in (client, client.keyheat, twin):
        otel.instrument(each, provider)
    (point,) = collected(reader)["keyheat.client.hot_keys"]
    assert point.value == 1


def test_engines_with_the_same_labels_are_added_up(protected: Protected, valkey: str) -> None:
    one, other = busy(protected, valkey), protected(valkey, max_staleness=0.2)
    other.get("x")
    figures = Figures()
    for client in (one, other):
        figures.add(client)
    found = {figure.source: points for figure, points in figures.read().items()}
    both = [client.keyheat.stats() for client in (one, other)]
    ((_, commands),) = found["commands"]
    ((_, bound_s),) = found["max_staleness_ms"]
    assert commands == sum(stats["commands"] for stats in both)
    assert bound_s == pytest.approx(0.2)


def test_deployments_are_told_apart(protected: Protected, valkey: str, own_server: EmbeddedServer) -> None:
    registry = prometheus_client.CollectorRegistry()
    made = prometheus.collector(busy(protected, valkey))
    made.add(protected(own_server.address))
    registry.register(made)
    ports = {sample.labels["server_port"] for sample in scraped(registry)["keyheat_client_commands_total"]}
    assert ports == {valkey.split(":")[1], str(own_server.port)}


def test_a_client_that_is_gone_is_gone_from_the_figures(
    valkey: str, own_settings: dict[str, Any], eventually: Callable[..., Any]
) -> None:
    import redis  # noqa: PLC0415

    from keyheat.client import protect  # noqa: PLC0415

    host, port = valkey.split(":")
    client = protect(redis.Redis(host, int(port)), **own_settings)
    figures = Figures()
    figures.add(client)
    client.ping()
    assert figures.read()
    client.close()
    del client
    eventually(lambda: not figures.read())


# ---------------------------------------------------------------- keys


def test_no_key_is_named_unless_asked_for(
    protected: Protected, valkey: str, reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    client = busy(protected, valkey, "secret:x-y")
    otel.instrument(client, provider)
    registry = prometheus_client.CollectorRegistry()
    registry.register(prometheus.collector(client))
    assert "secret" not in prometheus_client.generate_latest(registry).decode()
    assert "secret" not in str(collected(reader))


def test_the_hottest_keys_are_named_if_asked_for(
    protected: Protected, valkey: str, eventually: Callable[..., Any]
) -> None:
    client = busy(protected, valkey, "cool")
    registry = prometheus_client.CollectorRegistry()
    registry.register(prometheus.collector(client, keys=1))

    def is_named() -> bool:
        for _ in range(500):
            client.get("hotter")
        (sample,) = scraped(registry)["keyheat_client_key_reads_per_second"]
        return bool(sample.labels["keyheat_key"] == "hotter" and sample.value > 0)

    eventually(is_named)


def test_keys_are_redacted_if_asked_for(
    protected: Protected, valkey: str, reader: InMemoryMetricReader, provider: MeterProvider
) -> None:
    client = busy(protected, valkey, "user:4711")
    otel.instrument(client, provider, keys=5, redact=hashed)
    (point,) = collected(reader)["keyheat.client.key.share"]
    assert point.attributes["keyheat.key"] == hashed(b"user:4711")
    until_local(client.keyheat, lambda: client.get("user:4712"))
    # Keys that are shown alike are added up.
    figures = Figures(keys=5, redact=prefixed)
    figures.add(client)
    ((labels, _),) = figures.read()[KEY_FIGURES[0]]
    assert dict(labels)["keyheat.key"] == "user:*"


@pytest.mark.parametrize(
    ("redact", "key", "text"),
    [
        (shown, b"a\x1b[2J", "a\\x1b[2J"),
        (hashed, b"item:7", "sha256:5fcc6761a2de"),
        (prefixed, b"user:4711", "user:*"),
        (prefixed, b"a:b:\xff", "a:b:*"),
        (prefixed, b"4711", "*"),
    ],
)
def test_a_key_is_shown_as_asked_for(redact: Callable[[bytes], str], key: bytes, text: str) -> None:
    assert redact(key) == text


# ---------------------------------------------------------------- registries, and what is refused


def test_a_registry_takes_one_collector(protected: Protected, valkey: str) -> None:
    client = protected(valkey)
    registry = prometheus_client.CollectorRegistry(auto_describe=True)
    made = prometheus.collector(client)
    registry.register(made)
    with pytest.raises(ValueError, match="Duplicated"):
        registry.register(prometheus.collector(client))
    registry.unregister(made)
    registry.register(made)
    assert {family.name for family in made.describe()} == {family.name for family in made.collect()}


@pytest.mark.parametrize("what", [None, object(), "client"])
def test_what_is_not_protected_is_refused(what: Any, provider: MeterProvider) -> None:
    for take in (lambda: otel.instrument(what, provider), lambda: prometheus.collector(what)):
        with pytest.raises(ConfigError, match=r"is not protected; accepted: what keyheat.protect"):
            take()


def test_a_wrong_number_of_keys_is_refused(protected: Protected, valkey: str) -> None:
    with pytest.raises(ConfigError, match="keys: accepted: an integer, 0 or more"):
        prometheus.collector(protected(valkey), keys=-1)


# ---------------------------------------------------------------- spans


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """An exporter that keeps spans."""
    return InMemorySpanExporter()


@pytest.fixture
def tracing(spans: InMemorySpanExporter) -> Iterator[TracerProvider]:
    """A tracer provider that exports at once."""
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(spans))
    yield made
    made.shutdown()


def test_a_load_is_a_span_and_a_hit_is_none(
    protected: Protected, valkey: str, spans: InMemorySpanExporter, tracing: TracerProvider
) -> None:
    loader = Loader(protected(valkey))
    otel.instrument_loader(loader, tracing)
    otel.instrument_loader(loader, tracing)
    inner = tracing.get_tracer("source")

    def load() -> str:
        with inner.start_as_current_span("query"):
            return "value"

    for _ in range(5):
        assert loader.get_or_load("k", load, ttl=60) == b"value"
    query, loaded = spans.get_finished_spans()
    assert (query.name, loaded.name) == ("query", "keyheat.load")
    assert query.parent is not None
    assert loaded.context is not None
    assert query.parent.span_id == loaded.context.span_id
    assert dict(loaded.attributes or {}) == {}


def test_a_failed_load_is_a_span_with_its_error(
    protected: Protected, valkey: str, spans: InMemorySpanExporter, tracing: TracerProvider
) -> None:
    loader = Loader(protected(valkey))
    otel.instrument_loader(loader, tracing, redact=shown)

    @loader.cached("item:{number}", ttl=60)
    def item(number: int) -> str:
        raise LookupError(number)

    with pytest.raises(LookupError):
        item(7)
    (span,) = spans.get_finished_spans()
    assert dict(span.attributes or {}) == {"keyheat.key": "item:7"}
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.events[0].name == "exception"


async def test_an_asynchronous_load_is_a_span_until_it_ends(
    valkey: str, spans: InMemorySpanExporter, tracing: TracerProvider
) -> None:
    import redis.asyncio  # noqa: PLC0415

    host, port = valkey.split(":")
    async with redis.asyncio.Redis(host=host, port=int(port)) as client:
        loader = Loader(client)
        otel.instrument_loader(loader, tracing)

        async def load() -> str:
            with tracing.get_tracer("source").start_as_current_span("query"):
                await client.ping()
                return "value"

        @loader.cached("made:{number}", ttl=60)
        async def made(number: int) -> int:
            return number

        assert await loader.get_or_load_async("k", load, ttl=60) == b"value"
        assert await loader.refresh_async("k", load, ttl=60) == b"value"
        assert await made(3) == 3
    names = [span.name for span in spans.get_finished_spans()]
    assert names == ["query", "keyheat.load", "query", "keyheat.load", "keyheat.load"]
