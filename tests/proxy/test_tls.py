"""TLS on both sides of the proxy, against real clients and a real server.

What is said in plain text elsewhere must be so here, too; what is tested is that nothing hangs, is lost or
is let in. Where no server with TLS is installed, what needs one is skipped and says so.
"""

import contextlib
import json
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from keyheat.errors import ConfigError
from keyheat.proxy.config import ConfigSource
from tests.client.tls_servers import Certificates, TlsServer, skip_without_tools
from tests.conftest import ProxyFactory
from tests.proxy.proxies import connect
from tests.proxy.walk import walk

Eventually = Callable[..., Any]
RULES = [
    {
        "name": "test",
        "match": {"any": True},
        "levels": [{"metric": "reads", "enter_per_s": 20.0, "exit_per_s": 1.0}],
        "min_hot_ms": 1000,
        "cooling_ms": 3000,
        "plan": ["local_cache", "coalesce"],
    }
]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """One CA for all."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program on PATH: it makes the certificates of these tests")
    return Certificates(tmp_path_factory.mktemp("tls") / "certificates")


@pytest.fixture(scope="module")
def tls_server(certificates: Certificates) -> Iterator[TlsServer]:
    skip_without_tools()
    with TlsServer(certificates) as running:
        yield running


@pytest.fixture
def listening(proxy_factory: ProxyFactory, certificates: Certificates, valkey: str) -> Callable[..., Any]:
    """A proxy that takes clients over TLS."""

    def start(**settings: Any) -> Any:
        whole = {
            "tls_listen": "127.0.0.1:0",
            "tls_cert_file": str(certificates.server.certificate),
            "tls_key_file": str(certificates.server.key),
            "shards": 1,
            **settings,
        }
        return proxy_factory(valkey, **whole)

    return start


def port_of(address: str) -> int:
    return int(address.rsplit(":", 1)[1])


def client_of(proxy: Any, certificates: Certificates, **options: Any) -> "redis.Redis":
    ca = str(certificates.ca.certificate)
    common = {"ssl": True, "ssl_ca_certs": ca, "ssl_check_hostname": True, "socket_timeout": 20}
    return redis.Redis(port=port_of(proxy.tls_listen), **{**common, **options})


def raw(proxy: Any, certificates: Certificates) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(certificates.ca.certificate))
    plain = socket.create_connection(("127.0.0.1", port_of(proxy.tls_listen)), timeout=20)
    return context.wrap_socket(plain, server_hostname="localhost")


def upstream_of(server: TlsServer, certificates: Certificates, **tls: Any) -> dict[str, Any]:
    whole = {
        "verify": "full",
        "ca_files": [str(certificates.ca.certificate)],
        "ca_directories": [],
        "cert_file": None,
        "key_file": None,
        **tls,
    }
    return {"mode": "auto", "addresses": [server.tls_address], "tls": whole}


def plain_client(proxy: Any, **options: Any) -> "redis.Redis":
    return redis.Redis(port=port_of(proxy.listen), **options)


# ---------------------------------------------------------------- clients


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_it_is_the_same_proxy(
    listening: Callable[..., Any], certificates: Certificates, protocol: int, version: ssl.TLSVersion
) -> None:
    proxy = listening()
    client = client_of(proxy, certificates, protocol=protocol, ssl_min_version=version)
    with plain_client(proxy) as other:
        walk(client, other, bytes(range(256)) * 12_000)


def test_a_slow_reader_of_a_big_reply_gets_all_of_it(
    listening: Callable[..., Any], certificates: Certificates
) -> None:
    proxy = listening()
    value = bytes(range(256)) * 40_000
    with client_of(proxy, certificates) as client:
        client.set("big", value)
    with raw(proxy, certificates) as stream:
        stream.sendall(b"GET big\r\n" * 3 + b"PING\r\n")
        got = bytearray()
        while not got.endswith(b"+PONG\r\n"):
            piece = stream.recv(50_000)
            assert piece
            got += piece
            if len(got) < 3_000_000:
                time.sleep(0.002)
    assert bytes(got) == b"$%d\r\n%s\r\n" % (len(value), value) * 3 + b"+PONG\r\n"


def test_both_ways_may_be_full_at_once(listening: Callable[..., Any], certificates: Certificates) -> None:
    proxy = listening()
    request = b"*2\r\n$4\r\nECHO\r\n$20000\r\n" + b"x" * 20_000 + b"\r\n"
    reply = b"$20000\r\n" + b"x" * 20_000 + b"\r\n"
    count = 1_000
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(certificates.ca.certificate))
    end = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", port_of(proxy.tls_listen)), timeout=20) as plain:
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                plain.sendall(outgoing.read())
                break
            plain.sendall(outgoing.read())
            incoming.write(plain.recv(65_536))
        for _ in range(count):
            end.write(request)
        # All is sent before anything is read: the proxy stops reading for a while, and goes on then.
        sender = threading.Thread(target=plain.sendall, args=(outgoing.read(),))
        sender.start()
        time.sleep(0.3)
        got = bytearray()
        while len(got) < count * len(reply):
            try:
                got += end.read(65_536)
            except ssl.SSLWantReadError:
                incoming.write(plain.recv(65_536))
        sender.join()
    assert got == reply * count


def test_a_reply_is_whole_though_its_client_quits(
    listening: Callable[..., Any], certificates: Certificates
) -> None:
    proxy = listening()
    with client_of(proxy, certificates) as client:
        client.set("big", b"x" * 5_000_000)
    with raw(proxy, certificates) as stream:
        stream.sendall(b"GET big\r\nQUIT\r\n")
        time.sleep(0.2)
        got = 0
        while piece := stream.recv(65_536):  # empty only after a farewell: an error if it is missing
            got += len(piece)
    assert got == len("$5000000\r\n") + 5_000_000 + 2 + len("+OK\r\n")


def test_records_may_come_byte_by_byte(listening: Callable[..., Any], certificates: Certificates) -> None:
    proxy = listening()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context(cafile=str(certificates.ca.certificate))
    end = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with socket.create_connection(("127.0.0.1", port_of(proxy.tls_listen)), timeout=20) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def until_done(step: Callable[[], Any]) -> Any:
            while True:
                try:
                    done = step()
                except ssl.SSLWantReadError:
                    done = None
                for byte in outgoing.read():
                    plain.sendall(bytes([byte]))
                if done is not None:
                    return done
                incoming.write(plain.recv(1))

        def shake() -> bool:
            end.do_handshake()
            return True

        until_done(shake)
        end.write(b"PING\r\n")
        assert until_done(lambda: end.read(100)) == b"+PONG\r\n"


def test_keys_may_change_under_way(listening: Callable[..., Any], certificates: Certificates) -> None:
    proxy = listening()
    address = f"127.0.0.1:{port_of(proxy.tls_listen)}"
    words = ("-connect", address, "-tls1_3", "-CAfile", str(certificates.ca.certificate))
    with subprocess.Popen(
        ["openssl", "s_client", *words],  # noqa: S607
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        # A line that is K alone has the program change keys, and ask the same of the proxy.
        for line in (b"PING one\r\n", b"K\n", b"PING two\r\n", b"K\n", b"PING three\r\n"):
            program.stdin.write(line)
            program.stdin.flush()
            time.sleep(0.1)
        program.stdin.close()
        said = program.stdout.read()
    assert all(word in said for word in (b"one\r\n", b"two\r\n", b"three\r\n")), said


def test_those_who_do_not_speak_tls_are_cut_and_those_who_dawdle_are_too(
    listening: Callable[..., Any], certificates: Certificates
) -> None:
    proxy = listening(handshake_timeout_ms=300)
    address = ("127.0.0.1", port_of(proxy.tls_listen))
    with socket.create_connection(address, timeout=5) as plain:
        plain.sendall(b"*1\r\n$4\r\nPING\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"PONG" not in plain.recv(100)
            assert plain.recv(100) == b""
    began = time.monotonic()
    silent = [socket.create_connection(address, timeout=5) for _ in range(50)]
    with client_of(proxy, certificates) as client:
        for _ in range(20):
            before = time.monotonic()
            assert client.ping()
            assert time.monotonic() - before < 0.2
        for each in silent:
            with contextlib.suppress(ConnectionError):
                assert each.recv(1) == b""
            each.close()
        assert time.monotonic() - began < 3
        assert client.ping()


def test_agreeing_waits_for_no_server(proxy_factory: ProxyFactory, certificates: Certificates) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        pair = certificates.server
        proxy = proxy_factory(
            f"127.0.0.1:{mute.getsockname()[1]}",
            connect_timeout_ms=1_200,
            handshake_timeout_ms=500,
            tls_listen="127.0.0.1:0",
            tls_cert_file=str(pair.certificate),
            tls_key_file=str(pair.key),
        )
        began = time.monotonic()
        with raw(proxy, certificates) as stream:
            assert time.monotonic() - began < 1
            time.sleep(0.8)
            stream.sendall(b"PING\r\n")
            assert stream.recv(100) == b"+PONG\r\n"


def test_a_client_shows_who_it_is_where_that_is_asked(
    listening: Callable[..., Any], certificates: Certificates
) -> None:
    proxy = listening(tls_client_ca_file=str(certificates.ca.certificate))
    own = certificates.issued("client", "extendedKeyUsage=clientAuth")
    stranger = certificates.self_signed("stranger")
    known = {"ssl_certfile": str(own.certificate), "ssl_keyfile": str(own.key)}
    unknown = {"ssl_certfile": str(stranger.certificate), "ssl_keyfile": str(stranger.key)}
    with client_of(proxy, certificates, **known) as client:
        assert client.ping()
    refused: tuple[dict[str, str], ...] = ({}, unknown)
    for identity in refused:
        client = client_of(proxy, certificates, retry=None, **identity)
        with client, pytest.raises(redis.ConnectionError):
            client.ping()


def test_tls_alone_can_be_listened_for(listening: Callable[..., Any], certificates: Certificates) -> None:
    proxy = listening(listen=None)
    assert proxy.listen == ""
    with client_of(proxy, certificates) as client:
        assert client.ping()


def test_many_come_and_go(listening: Callable[..., Any], certificates: Certificates) -> None:
    proxy = listening(shards=2)
    for _ in range(3):
        clients = [client_of(proxy, certificates) for _ in range(20)]
        assert all(client.ping() for client in clients)
        for client in clients:
            client.close()
    with raw(proxy, certificates) as half:
        half.sendall(b"*1\r\n$4\r\nPI")  # and gone


def test_one_in_the_middle_of_a_request_that_is_too_long_is_told_so(
    listening: Callable[..., Any], certificates: Certificates
) -> None:
    proxy = listening(request_max_bytes=100_000)
    with raw(proxy, certificates) as stream:
        stream.sendall(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$20971520\r\n" + b"x" * (20 << 20) + b"\r\n")
        with stream.makefile("rb") as said:
            assert said.read().endswith(b"is longer than request_max_bytes, 100000\r\n")


# ---------------------------------------------------------------- servers


def test_a_server_with_tls_is_reached(
    proxy_factory: ProxyFactory, tls_server: TlsServer, certificates: Certificates, eventually: Eventually
) -> None:
    upstream = upstream_of(tls_server, certificates)
    proxy = proxy_factory("", upstream=upstream, rules=RULES, shards=1)
    value = bytes(range(256)) * 20_000
    with plain_client(proxy) as client, tls_server.client() as other:
        assert client.set("big", value)
        assert client.get("big") == value
        pipe = client.pipeline()
        for number in range(2_000):
            pipe.set(f"k:{number}", "x" * 300)
        assert all(pipe.execute())
        other.set("hot", "0")

        def is_local() -> bool:
            client.get("hot")
            return bool(json.loads(proxy.stats())["local_hits"])

        eventually(is_local)
        for number in range(1, 10):
            other.set("hot", number)
            eventually(lambda number=number: client.get("hot") == b"%d" % number, timeout_s=2)


def test_a_server_with_tls_takes_nothing_for_a_client_that_has_left(
    proxy_factory: ProxyFactory, tls_server: TlsServer, certificates: Certificates
) -> None:
    proxy = proxy_factory("", upstream=upstream_of(tls_server, certificates), shards=1)
    with tls_server.client() as other, plain_client(proxy) as client:
        assert client.ping()
        for _ in range(5):
            with connect(proxy) as leaves:
                leaves.sendall(b"BLPOP jobs 0\r\n")
            time.sleep(0.05)
            assert other.rpush("jobs", "job") == 1
            assert other.lpop("jobs") == b"job"
            other.rpush("jobs", "job")
            with connect(proxy) as ends:
                ends.sendall(b"BLPOP jobs 0\r\n")
                ends.shutdown(socket.SHUT_WR)
                with ends.makefile("rb") as replies:
                    assert replies.read() == b"*2\r\n$4\r\njobs\r\n$3\r\njob\r\n"


def test_a_cluster_is_followed_over_tls(
    proxy_factory: ProxyFactory, certificates: Certificates, eventually: Eventually
) -> None:
    skip_without_tools()
    with TlsServer(certificates, cluster_enabled="yes", tls_cluster="yes") as node:
        with node.client() as admin:
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            eventually(lambda: "cluster_state:ok" in str(admin.execute_command("CLUSTER", "INFO")))
        proxy = proxy_factory("", upstream=upstream_of(node, certificates), rules=RULES)
        with plain_client(proxy) as client:
            eventually(lambda: proxy.upstream_error() == "")
            values = {f"k:{n}": str(n).encode() for n in range(100)}
            assert client.mset(values)
            assert client.mget(list(values)) == list(values.values())


def test_tls_on_both_sides(
    proxy_factory: ProxyFactory, tls_server: TlsServer, certificates: Certificates
) -> None:
    proxy = proxy_factory(
        "",
        upstream=upstream_of(tls_server, certificates),
        listen=None,
        tls_listen="127.0.0.1:0",
        tls_cert_file=str(certificates.server.certificate),
        tls_key_file=str(certificates.server.key),
    )
    value = bytes(range(256)) * 20_000
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            with client_of(proxy, certificates) as client:
                for _ in range(5):
                    assert client.set(name, value)
                    assert client.get(name) == value
        except BaseException as error:  # noqa: BLE001 - told by the test
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"big:{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize(
    ("pair", "tls", "why"),
    [
        ("server", {"ca_files": []}, "issued by no CA that is trusted here"),
        ("elsewhere", {}, "not valid for name"),
        ("elsewhere", {"verify": "ca"}, ""),
        ("server", {"ca_files": [], "verify": "none"}, ""),
    ],
)
def test_a_server_is_believed_as_far_as_it_is_told(
    proxy_factory: ProxyFactory,
    certificates: Certificates,
    pair: str,
    tls: dict[str, Any],
    why: str,
    eventually: Eventually,
) -> None:
    skip_without_tools()
    shown = certificates.issued(pair, "subjectAltName=DNS:elsewhere") if pair == "elsewhere" else None
    with TlsServer(certificates, shown) as server:
        proxy = proxy_factory("", upstream=upstream_of(server, certificates, **tls), shards=1)
        with plain_client(proxy, retry=None) as client:
            if why:
                eventually(lambda: why in proxy.upstream_error())
                with pytest.raises(redis.RedisError, match=why):
                    client.get("k")
            else:
                assert client.set("k", "v")


def test_a_server_that_asks_is_shown_a_certificate(
    proxy_factory: ProxyFactory, certificates: Certificates, eventually: Eventually
) -> None:
    skip_without_tools()
    own = certificates.issued("proxy", "extendedKeyUsage=clientAuth")
    shown = {"cert_file": str(own.certificate), "key_file": str(own.key)}
    with TlsServer(certificates, tls_auth_clients="yes") as server:
        proxy = proxy_factory("", upstream=upstream_of(server, certificates, **shown))
        with plain_client(proxy) as client:
            assert client.set("k", "v")
        without = proxy_factory("", upstream=upstream_of(server, certificates))
        assert eventually(without.upstream_error)


def test_a_server_that_never_agrees_delays_nobody_else(
    proxy_factory: ProxyFactory, tls_server: TlsServer, certificates: Certificates, eventually: Eventually
) -> None:
    proxy = proxy_factory(
        "", upstream=upstream_of(tls_server, certificates), shards=1, connect_timeout_ms=300
    )
    with plain_client(proxy, retry=None) as client:
        assert client.set("k", "v")
        tls_server.pause()
        try:
            # Connections that are there wait; a new one is given up in time, and the shard serves on.
            began = time.monotonic()
            with plain_client(proxy, protocol=2, retry=None) as second, pytest.raises(redis.RedisError):
                second.get("k")
            assert time.monotonic() - began < 3
            before = time.monotonic()
            assert client.ping()
            assert time.monotonic() - before < 0.2
        finally:
            tls_server.resume()

        def is_back() -> bool:
            # The node has failed: it is left alone for a moment.
            with contextlib.suppress(redis.ResponseError):
                return bool(client.get("k") == b"v")
            return False

        eventually(is_back)


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            'upstream_tls_ca_file = "ca.pem"',
            "upstream_tls_ca_file: has no effect without an upst",
        ),
        ('tls_cert_file = "c.pem"', "tls_cert_file: has no effect without tls_listen"),
        ('upstream = "rediss://h"\nupstream_tls_verify = "some"', "upstream_tls_verify: accepted: 'full', "),
        ('upstream = "rediss://h"\nupstream_tls_key_file = "k"', "needs upstream_tls_cert_file"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        ConfigSource(file, {}).load()


@pytest.mark.parametrize("missing", ["certificate", "key", "ca"])
def test_a_file_that_cannot_be_used_is_named(
    keyheat: Callable[..., Any], certificates: Certificates, tmp_path: Path, missing: str
) -> None:
    files = {
        "certificate": certificates.server.certificate,
        "key": certificates.server.key,
        "ca": certificates.ca.certificate,
    }
    files[missing] = tmp_path / "empty.pem"
    files[missing].write_text("nothing\n")
    words = ("--tls-cert-file", files["certificate"], "--tls-key-file", files["key"])
    more = ("--tls-client-ca-file", files["ca"], "--tls-listen", "127.0.0.1:0")
    done = keyheat("proxy", "--check", *map(str, (*words, *more)))
    assert (done.returncode, done.stdout) == (2, "")
    assert "empty.pem" in done.stderr
    assert done.stderr.startswith("keyheat: tls_listen: ")
