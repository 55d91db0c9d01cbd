"""URLs of upstream servers."""

import pytest

from keyheat.errors import ConfigError
from keyheat.proxy.url import parse_url


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("redis://h", ("h:6379",)),
        ("redis://h:7000", ("h:7000",)),
        ("valkey://h:7000/", ("h:7000",)),
        ("h:7000", ("h:7000",)),
        ("7000", ("127.0.0.1:7000",)),
        ("redis://a:1,b,[::1]:3", ("a:1", "b:6379", "[::1]:3")),
    ],
)
def test_hosts_and_ports(url: str, addresses: tuple[str, ...]) -> None:
    assert parse_url(url).addresses == addresses


def test_user_password_and_database() -> None:
    url = parse_url("redis://us%40er:p%2Fa:ss@h:1/3")
    assert (url.username, url.password, url.db) == ("us@er", "p/a:ss", 3)


def test_a_password_alone_belongs_to_the_default_user() -> None:
    url = parse_url("redis://:secret@h")
    assert (url.username, url.password) == (None, "secret")


def test_a_password_is_never_shown() -> None:
    url = parse_url("redis://user:secret@h:1/3")
    assert "secret" not in f"{url} {url!r}"


@pytest.mark.parametrize(
    "url",
    [
        "rediss://h",
        "unix:///tmp/s",
        "http://h",
        "redis://user@h",
        "redis://h:secret",
        "redis://h:1:secret",
        "redis://h:70000",
        "redis://h/secret",
        "redis://h?secret=1",
    ],
)
def test_what_cannot_be_used_is_refused_without_repeating_a_secret(url: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        parse_url(url)
    assert "secret" not in str(refusal.value)


def test_tls_is_for_those_who_speak_it() -> None:
    with pytest.raises(ConfigError, match="asks for TLS, which this command does not speak"):
        parse_url("rediss://h")
    url = parse_url("rediss://h", is_for_proxy=True)
    assert (url.is_tls, url.addresses, str(url)) == (True, ("h:6379",), "rediss://h:6379")


def test_sentinels_are_named_with_their_service() -> None:
    url = parse_url("redis+sentinel://u:p@a,b:1/the-service/2", is_for_proxy=True)
    assert url.addresses == ("a:26379", "b:1")
    assert (url.sentinel_service, url.db, url.username) == ("the-service", 2, "u")
    assert str(url) == "redis+sentinel://u:***@a:26379,b:1/the-service/2"
    assert parse_url("rediss+sentinel://a/s", is_for_proxy=True).is_tls
    for bad in ("redis+sentinel://a", "redis+sentinel://a/", "redis+sentinel://a/s/x"):
        with pytest.raises(ConfigError):
            parse_url(bad, is_for_proxy=True)
    with pytest.raises(ConfigError, match="names Sentinels, which this command does not ask"):
        parse_url("redis+sentinel://a/s")
