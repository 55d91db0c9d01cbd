"""The hot set from outside: taken, replaced, forgotten, and guarded."""

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from keyheat.proxy.config import ConfigSource
from tests.proxy.test_replicas import connect, stat

SETTINGS = {"hot_set": "fed", "feed_token": "secret-token"}


def feed(source: str, *keys: str, ttl_ms: int = 5_000) -> str:
    return json.dumps({"source": source, "ttl_ms": ttl_ms, "keys": [{"key": key} for key in keys]})


def hot_keys(proxy: Any) -> set[str]:
    return {key["key"] for key in json.loads(proxy.hot())["keys"]}


def put(proxy: Any, body: str, token: str | None = SETTINGS["feed_token"]) -> tuple[int, str]:
    request = urllib.request.Request(f"http://{proxy.http}/api/hot", body.encode(), method="PUT")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_key_that_is_told_hot_is_answered_locally_until_its_time_is_over(
    server: Any, proxy_factory: Any, eventually: Any
) -> None:
    proxy = proxy_factory(server.url, **SETTINGS)
    with connect(proxy) as client:
        client.set("told", "v")
        client.set("not-told", "v")
        for _ in range(500):  # it does not count
            client.get("not-told")
        assert not hot_keys(proxy)
        assert put(proxy, feed("node-1", "told", ttl_ms=1_000))[0] == 200
        eventually(lambda: hot_keys(proxy) == {"told"})

        def is_local() -> bool:
            client.get("told")
            return stat(proxy, "local_hits") > 0

        eventually(is_local)
        eventually(lambda: not hot_keys(proxy))
        hits = stat(proxy, "local_hits")
        for _ in range(100):
            assert client.get("told") == b"v"
        assert stat(proxy, "local_hits") == hits


def test_sources_add_up_and_each_replaces_its_own(server: Any, proxy_factory: Any, eventually: Any) -> None:
    proxy = proxy_factory(server.url, **SETTINGS)
    proxy.feed(feed("a", "k", "l"))
    proxy.feed(feed("b", "m"))
    eventually(lambda: hot_keys(proxy) == {"k", "l", "m"})
    proxy.feed(feed("a", "l"))
    eventually(lambda: hot_keys(proxy) == {"l", "m"})
    plan = {key["key"]: key for key in json.loads(proxy.hot())["keys"]}["l"]
    assert plan["reads_per_s"] is None
    assert plan["plan"] == ["local_cache"]


def test_feeds_are_guarded(server: Any, proxy_factory: Any) -> None:
    proxy = proxy_factory(server.url, **SETTINGS)
    assert put(proxy, feed("a", "k"), token=None)[0] == 401
    assert put(proxy, feed("a", "k"), token="another")[0] == 401
    status, text = put(proxy, '{"source": "a", "ttl_ms": 1, "keys": []}')
    assert status == 400
    assert "ttl_ms" in text
    assert put(proxy, "x" * (9 << 20))[0] == 413
    without = proxy_factory(server.url, hot_set="fed")
    assert put(without, feed("a", "k"))[0] == 403
    counting = proxy_factory(server.url, feed_token="secret-token")
    status, text = put(counting, feed("a", "k"))
    assert status == 400
    assert "counts by itself" in text


def test_the_token_lies_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-token\n")
    config = tmp_path / "proxy.toml"
    config.write_text('hot_set = "fed"\nfeed_token_file = "token"\n')
    settings = ConfigSource(config, {}).load()
    assert settings.to_json()["feed_token"] == "secret-token"
    assert "secret-token" not in repr(settings)
    (tmp_path / "token").write_text("")
    with pytest.raises(Exception, match=r"feed_token_file.*is empty"):
        ConfigSource(config, {}).load().to_json()
