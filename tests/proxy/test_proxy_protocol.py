"""Clients that come through a load balancer, which says whose connection it is."""

import contextlib
import shutil
import socket
import ssl
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.client.tls_servers import Certificates
from tests.conftest import ProxyFactory

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V4 = socket.inet_aton("192.0.2.7") + socket.inet_aton("198.51.100.1") + struct.pack("!HH", 4711, 6379)
V6 = socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16) + struct.pack("!HH", 4711, 6379)
EXTENSIONS = b"\x04\x00\x03abc" + b"\xea\x03\xe8" + bytes(1000)


def v2(command: int, family: int, body: bytes) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


@pytest.fixture
def behind(proxy_factory: ProxyFactory, valkey: str) -> Callable[..., Any]:
    def start(**settings: Any) -> Any:
        common = {"proxy_protocol": "required", "proxy_protocol_trusted": ["127.0.0.0/8"], "shards": 1}
        return proxy_factory(valkey, **{**common, **settings})

    return start


def connect(address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])), timeout=10)


def read_line(stream: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\r\n"):
        piece = stream.recv(1)
        assert piece, line
        line += piece
    return line


def shown(stream: socket.socket) -> str:
    """The address the proxy knows a client by."""
    stream.sendall(b"CLIENT INFO\r\n")
    read_line(stream)
    return read_line(stream).decode().split("addr=")[1].split(" ")[0]


def is_cut(stream: socket.socket) -> bool:
    try:
        return stream.recv(100) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize(
    ("header", "address"),
    [
        (b"PROXY TCP4 192.0.2.7 198.51.100.1 4711 6379\r\n", "192.0.2.7:4711"),
        (b"PROXY TCP6 2001:db8::7 ::1 4711 6379\r\n", "[2001:db8::7]:4711"),
        (b"PROXY UNKNOWN\r\n", "own"),
        (v2(0x21, 0x11, V4), "192.0.2.7:4711"),
        (v2(0x21, 0x11, V4 + EXTENSIONS), "192.0.2.7:4711"),
        (v2(0x21, 0x21, V6), "[2001:db8::7]:4711"),
        (v2(0x20, 0x00, b""), "own"),
        (v2(0x21, 0x31, bytes(216)), "own"),
        (v2(0x21, 0x00, EXTENSIONS), "own"),
    ],
)
@pytest.mark.parametrize("is_slow", [False, True])
def test_a_client_is_known_by_its_own_address(
    behind: Callable[..., Any], header: bytes, address: str, is_slow: bool
) -> None:
    with connect(behind().listen) as stream:
        own = "{}:{}".format(*stream.getsockname())
        if is_slow:
            for byte in header[:40]:
                stream.sendall(bytes([byte]))
                time.sleep(0.0005)
            stream.sendall(header[40:])
            assert shown(stream) == (own if address == "own" else address)
        else:
            stream.sendall(header + b"PING\r\n")  # in one packet
            assert read_line(stream) == b"+PONG\r\n"
            assert shown(stream) == (own if address == "own" else address)


@pytest.mark.parametrize(
    "header",
    [
        b"PING\r\n",
        b"PROXY TCP4 here there 1 2\r\n",
        b"PROXY " + b"x" * 200,
        v2(0x31, 0x11, V4),
        v2(0x21, 0x11, V4[:-1]),
        v2(0x21, 0x71, V4),
        v2(0x20, 0x00, bytes(20_000)),
    ],
)
def test_what_is_no_header_is_cut_at_once(behind: Callable[..., Any], header: bytes) -> None:
    proxy = behind()
    with connect(proxy.listen) as stream:
        stream.sendall(header)
        began = time.monotonic()
        assert is_cut(stream)
        assert time.monotonic() - began < 1


def test_a_header_that_does_not_come_is_not_waited_for(behind: Callable[..., Any]) -> None:
    proxy = behind(handshake_timeout_ms=300)
    began = time.monotonic()
    with connect(proxy.listen) as silent, connect(proxy.listen) as half, connect(proxy.listen) as good:
        half.sendall(SIGNATURE)
        good.sendall(v2(0x21, 0x11, V4))
        assert is_cut(silent)
        assert is_cut(half)
        assert time.monotonic() - began < 2
        assert shown(good) == "192.0.2.7:4711"


def test_only_balancers_may_connect(behind: Callable[..., Any]) -> None:
    proxy = behind(proxy_protocol_trusted=["10.0.0.0/8", "::1"])
    with connect(proxy.listen) as stream:
        with contextlib.suppress(ConnectionError):
            stream.sendall(v2(0x21, 0x11, V4) + b"PING\r\n")
        assert is_cut(stream)


def test_it_comes_before_tls(behind: Callable[..., Any], tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program on PATH: it makes the certificates of this test")
    certificates = Certificates(tmp_path / "certificates")
    pair = certificates.server
    files = {"tls_cert_file": str(pair.certificate), "tls_key_file": str(pair.key)}
    proxy = behind(tls_listen="127.0.0.1:0", **files)
    context = ssl.create_default_context(cafile=str(certificates.ca.certificate))
    plain = connect(proxy.tls_listen)
    plain.sendall(v2(0x21, 0x11, V4 + EXTENSIONS))
    with context.wrap_socket(plain, server_hostname="localhost") as stream:
        assert shown(stream) == "192.0.2.7:4711"


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"proxy_protocol_trusted": []}, "proxy_protocol_trusted: name the networks"),
        ({"proxy_protocol_trusted": ["10.0.0.0/64"]}, "is no network"),
        ({"proxy_protocol": "perhaps"}, "perhaps"),
    ],
)
def test_a_mistake_is_named(behind: Callable[..., Any], settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        behind(**settings)
