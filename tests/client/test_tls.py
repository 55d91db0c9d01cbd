"""Clients over TLS are protected like others, and by nothing weaker than their own connections.

What a client's own connections refuse it refuses itself; these tests are about the tracking connection. So
where it must refuse, the client beside it is made to be content, or the server has changed in between.
"""

import logging
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import valkey
from redis.credentials import CredentialProvider

from tests.client.libraries import cluster_client, single_class, single_client
from tests.client.sides import Side, hits, is_local, raw, until_local
from tests.client.tls_servers import NAMES, Certificates, Pair, TlsServer, skip_without_tools

LIBRARIES = ("redis", "valkey")
Eventually = Callable[..., Any]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """One CA for all."""
    skip_without_tools()
    return Certificates(tmp_path_factory.mktemp("tls") / "certificates")


@pytest.fixture(scope="module")
def shared(certificates: Certificates) -> Iterator[TlsServer]:
    with TlsServer(certificates) as running:
        yield running


@pytest.fixture
def server(shared: TlsServer) -> TlsServer:
    """A server with TLS, emptied."""
    with shared.client() as admin:
        admin.flushall()
        admin.set("hot", "1")
    return shared


@pytest.fixture
def trusting(certificates: Certificates) -> dict[str, Any]:
    """What a client of it has to be told."""
    return {"ssl": True, "ssl_ca_certs": str(certificates.ca.certificate), "ssl_check_hostname": True}


def why_not(client: Any, *, timeout_s: float = 10.0) -> str:
    """Why nothing is kept, once that is known; the client itself must go on."""
    deadline = time.monotonic() + timeout_s
    while not (told := client.keyheat.stats()["not_caching"]):
        assert client.get("hot") == b"1"
        assert time.monotonic() < deadline, "nothing is told"
    assert client.get("hot") == b"1"
    assert hits(client) == 0
    return str(told[0])


# ---------------------------------------------------------------- as without TLS


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_hot_key_is_answered_from_memory_and_changes_are_told(
    side: Side, server: TlsServer, trusting: dict[str, Any], library: str, eventually: Eventually
) -> None:
    client = side.protect(single_client(library, side, server.tls_address, **trusting))
    until_local(client, lambda: client.get("hot"))
    with server.client() as other:
        for number in range(2, 20):
            other.set("hot", number)
            eventually(lambda number=number: client.get("hot") == b"%d" % number, timeout_s=2)
            until_local(client, lambda: client.get("hot"))
        names = {each["name"]: each for each in other.client_list()}
        assert names["keyheat-tracking"]["laddr"] == server.tls_address
    assert client.keyheat.stats()["invalidations"] >= 18
    assert client.keyheat.stats()["not_caching"] == []


def test_commands_answer_as_the_clients_own(side: Side, server: TlsServer, trusting: dict[str, Any]) -> None:
    client = side.protected(server.tls_address, **trusting)
    plain = side.plain(server.tls_address, **trusting)
    client.hset("hash", mapping={"a": "1", "b": "2"})
    until_local(client, lambda: client.get("hot"), lambda: client.hgetall("hash"))
    for each in ("get", "strlen", "type", "ttl", "hgetall", "nonsense"):
        told = []
        for one in (client, plain):
            try:
                told.append(one.execute_command(each, "hash" if "h" in each[:1] else "hot"))
            except redis.ResponseError as error:
                told.append(str(error))
        assert told[0] == told[1], each
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        client.lpush("hot", "x")
    pipe = client.pipeline()
    pipe.set("hot", "2")
    pipe.get("hot")
    assert pipe.execute() == [True, b"2"]
    assert client.get("hot") == b"2"


def test_much_that_changes_at_once_is_told(
    sync: Side, server: TlsServer, trusting: dict[str, Any], eventually: Eventually
) -> None:
    """More than fits a TLS record, in both directions."""
    client = sync.protected(server.tls_address, {"max_staleness": 1.0}, **trusting)
    keys = [f"{'key':>200}:{number}" for number in range(300)]
    with server.client() as other:
        other.mset(dict.fromkeys(keys, "old"))
        for _ in range(100):
            for key in keys:
                client.get(key)
            if client.keyheat.stats()["registrations"] >= len(keys):
                break
        until_local(client, *(lambda key=key: client.get(key) for key in keys))
        other.mset(dict.fromkeys(keys, "new"))
        eventually(lambda: all(client.get(key) == b"new" for key in keys), timeout_s=1)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_cluster_is_tracked_over_tls(
    side: Side, certificates: Certificates, trusting: dict[str, Any], library: str, eventually: Eventually
) -> None:
    with TlsServer(certificates, cluster_enabled="yes", tls_cluster="yes") as node:
        with node.client() as admin:
            admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16_383)
            eventually(lambda: "cluster_state:ok" in str(admin.execute_command("CLUSTER", "INFO")))
        client = side.protect(cluster_client(library, side, node.tls_address, **trusting))
        client.set("hot", "1")
        until_local(client, lambda: client.get("hot"))
        with node.client() as other:
            other.set("hot", "2")
        eventually(lambda: client.get("hot") == b"2", timeout_s=2)
        until_local(client, lambda: client.get("hot"))


def test_a_url_is_enough(sync: Side, server: TlsServer, certificates: Certificates) -> None:
    url = f"rediss://{server.tls_address}/3?ssl_ca_certs={certificates.ca.certificate}"
    client = sync.protect(sync.wrap(redis.Redis.from_url(url)))
    client.set("hot", "3", ex=100)
    until_local(client, lambda: client.get("hot"))
    with server.client(db=3) as other:
        assert {"3"} == {
            str(each["db"]) for each in other.client_list() if each["name"] == "keyheat-tracking"
        }


# ---------------------------------------------------------------- who connects


def test_a_user_logs_in(side: Side, server: TlsServer, trusting: dict[str, Any]) -> None:
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "anna", "reset", "on", ">sécret", "~*", "+@all")
    client = side.protected(server.tls_address, username="anna", password="sécret", **trusting)
    until_local(client, lambda: client.get("hot"))
    with server.client() as admin:
        users = {each["user"] for each in admin.client_list() if each["name"] == "keyheat-tracking"}
    assert "anna" in users


def test_a_password_alone_is_the_default_users(
    side: Side, certificates: Certificates, trusting: dict[str, Any]
) -> None:
    with TlsServer(certificates, requirepass="secret") as server:
        client = side.protected(server.tls_address, password="secret", **trusting)
        client.set("hot", "1")
        until_local(client, lambda: client.get("hot"))


class Rotating(CredentialProvider):
    """Hands out what is valid now."""

    def __init__(self) -> None:
        self.current = ("rotating", "first")
        self.asked = 0

    def get_credentials(self) -> tuple[str, str]:
        self.asked += 1
        return self.current


def test_new_credentials_are_asked_for_with_each_connection(
    side: Side,
    server: TlsServer,
    trusting: dict[str, Any],
    eventually: Eventually,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "rotating", "reset", "on", ">first", "~*", "+@all")
        provider = Rotating()
        client = side.protected(server.tls_address, credential_provider=provider, **trusting)
        until_local(client, lambda: client.get("hot"))
        admin.execute_command("ACL", "SETUSER", "rotating", "resetpass", ">second")
        provider.current = ("rotating", "second")
        asked = provider.asked
        killed = [each for each in admin.client_list() if each["name"] == "keyheat-tracking"]
        for each in killed:
            admin.client_kill_filter(_id=each["id"])
        admin.set("hot", "2")
        eventually(lambda: client.keyheat.stats()["tracking_lost"] >= 1)
        until_local(client, lambda: client.get("hot"))
        assert client.get("hot") == b"2"
        assert provider.asked > asked
    assert "second" not in caplog.text


def test_a_refused_login_is_told_without_the_password(
    sync: Side, server: TlsServer, trusting: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "gone", "reset", "on", ">pa55word", "~*", "+@all")
        client = sync.protected(server.tls_address, username="gone", password="pa55word", **trusting)
        assert client.get("hot") == b"1"
        # The client's connection stays; no new one is let in.
        admin.execute_command("ACL", "SETUSER", "gone", "resetpass", ">another")
    why = why_not(client)
    assert "HELLO 3 AUTH" in why
    assert "WRONGPASS" in why
    assert "pa55word" not in why + caplog.text + repr(client.keyheat.stats())


@pytest.mark.parametrize("is_tls", [True, False])
def test_a_server_that_repeats_what_it_was_sent_is_not_repeated(
    sync: Side, certificates: Certificates, trusting: dict[str, Any], is_tls: bool
) -> None:
    """As one does that does not know `HELLO`."""
    with TlsServer(certificates, requirepass="pa55word", rename_command='HELLO" "') as server:
        address, options = (server.tls_address, trusting) if is_tls else (server.address, {})
        client = sync.protected(address, password="pa55word", protocol=2, **options)
        client.set("hot", "1")
        told = "RESP3 (HELLO 3 AUTH): ERR" if is_tls else "ResponseError: unknown command 'HELLO'"
        assert why_not(client) == told


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_server_that_asks_who_connects_is_told(
    side: Side, certificates: Certificates, trusting: dict[str, Any], library: str
) -> None:
    pair = certificates.issued("client", NAMES)
    own = {"ssl_certfile": str(pair.certificate), "ssl_keyfile": str(pair.key)}
    with TlsServer(certificates, tls_auth_clients="yes") as server:
        client = side.protect(single_client(library, side, server.tls_address, **trusting, **own))
        client.set("hot", "1")
        until_local(client, lambda: client.get("hot"))


def test_certificate_and_key_may_lie_in_one_file(
    sync: Side, certificates: Certificates, trusting: dict[str, Any], tmp_path: Path
) -> None:
    pair = certificates.issued("one", NAMES)
    both = tmp_path / "both.pem"
    both.write_text(pair.certificate.read_text() + pair.key.read_text())
    with TlsServer(certificates, tls_auth_clients="yes") as server:
        client = sync.protected(server.tls_address, ssl_certfile=str(both), **trusting)
        client.set("hot", "1")
        until_local(client, lambda: client.get("hot"))


def test_a_certificate_the_server_comes_to_ask_for_is_missed(
    sync: Side, certificates: Certificates, trusting: dict[str, Any]
) -> None:
    with TlsServer(certificates) as server:
        client = sync.protected(server.tls_address, **trusting)
        client.set("hot", "1")
        with server.client() as admin:
            admin.config_set("tls-auth-clients", "yes")
        assert "TLS: the server refuses: CertificateRequired" in why_not(client)


def test_a_key_with_a_password_is_refused(
    sync: Side, certificates: Certificates, trusting: dict[str, Any], server: TlsServer
) -> None:
    pair = certificates.issued("locked", NAMES)
    key, password = certificates.encrypted(pair.key)
    own: dict[str, Any] = {"ssl_certfile": str(pair.certificate), "ssl_keyfile": str(key)}
    own["ssl_password"] = password
    client = sync.protected(server.tls_address, **trusting, **own)
    why = why_not(client)
    assert "ssl_keyfile" in why
    assert "ssl_password" in why
    assert password not in why


# ---------------------------------------------------------------- whom it is connected to


def swap(server: TlsServer, pair: Pair) -> None:
    """Have the server show another certificate from now on."""
    files = {"tls-cert-file": str(pair.certificate), "tls-key-file": str(pair.key)}
    with server.client() as admin:
        # At once: each alone does not fit the other.
        admin.execute_command("CONFIG", "SET", *(word for pair in files.items() for word in pair))


@pytest.fixture
def own(certificates: Certificates) -> Iterator[TlsServer]:
    """A server whose certificate a test may change."""
    with TlsServer(certificates) as running:
        with running.client() as admin:
            admin.set("hot", "1")
        yield running


def test_a_server_that_an_unknown_ca_vouches_for_is_refused(
    side: Side, own: TlsServer, trusting: dict[str, Any], tmp_path: Path
) -> None:
    client = side.protected(own.tls_address, **trusting)
    assert client.get("hot") == b"1"
    swap(own, Certificates(tmp_path / "stranger").server)
    assert why_not(client) == "TLS: the server's certificate is issued by no CA that is trusted here"


def test_a_server_that_only_vouches_for_itself_is_refused(
    side: Side, own: TlsServer, certificates: Certificates, trusting: dict[str, Any]
) -> None:
    client = side.protected(own.tls_address, **trusting)
    assert client.get("hot") == b"1"
    swap(own, certificates.self_signed("stranger", "-addext", NAMES))
    why = "TLS: the server's certificate is marked as a CA's, and not itself trusted here"
    assert why_not(client) == why


def test_a_server_by_another_name_is_refused(
    side: Side, own: TlsServer, certificates: Certificates, trusting: dict[str, Any]
) -> None:
    client = side.protected(own.tls_address, **trusting)
    assert client.get("hot") == b"1"
    swap(own, certificates.issued("elsewhere", "subjectAltName=DNS:elsewhere"))
    why = why_not(client)
    assert "TLS: " in why
    assert "not valid for name" in why


def test_a_name_is_not_checked_where_the_client_does_not(
    side: Side, own: TlsServer, certificates: Certificates, trusting: dict[str, Any]
) -> None:
    swap(own, certificates.issued("elsewhere", "subjectAltName=DNS:elsewhere"))
    client = side.protected(own.tls_address, **(trusting | {"ssl_check_hostname": False}))
    until_local(client, lambda: client.get("hot"))


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_a_client_leaves_unsaid_is_checked_as_its_class_does(
    side: Side, own: TlsServer, certificates: Certificates, trusting: dict[str, Any], library: str
) -> None:
    """valkey-py does not look at names unless told to."""
    options = {name: value for name, value in trusting.items() if name != "ssl_check_hostname"}
    client = side.protect(single_client(library, side, own.tls_address, **options))
    assert client.get("hot") == b"1"
    swap(own, certificates.issued("elsewhere", "subjectAltName=DNS:elsewhere"))
    if library == "valkey":
        until_local(client, lambda: client.get("hot"))
    else:
        assert "not valid for name" in why_not(client)


@pytest.mark.parametrize("library", LIBRARIES)
def test_asked_for_nothing_anybody_is_believed(
    side: Side, own: TlsServer, certificates: Certificates, library: str
) -> None:
    swap(own, certificates.self_signed("stranger"))
    options = {"ssl": True, "ssl_cert_reqs": "none", "ssl_check_hostname": False}
    client = side.protect(single_client(library, side, own.tls_address, **options))
    until_local(client, lambda: client.get("hot"))


def test_a_client_that_checks_shares_nothing_with_one_that_does_not(
    sync: Side, own: TlsServer, certificates: Certificates, trusting: dict[str, Any]
) -> None:
    swap(own, certificates.self_signed("stranger"))
    careless = sync.protected(own.tls_address, ssl=True, ssl_cert_reqs="none", ssl_check_hostname=False)
    until_local(careless, lambda: careless.get("hot"))
    careful = sync.protected(own.tls_address, **trusting)
    with pytest.raises(redis.ConnectionError, match="CERTIFICATE_VERIFY_FAILED"):
        careful.get("hot")
    assert raw(careful).keyheat.stats()["cached_entries"] == 0


def test_clients_of_both_kinds_share_one_connection(server: TlsServer, trusting: dict[str, Any]) -> None:
    sides = [Side("sync"), Side("aio")]
    try:
        clients = [
            side.protect(side.plain(server.tls_address, **trusting), **sides[0].settings) for side in sides
        ]
        until_local(clients[0], lambda: clients[0].get("hot"))
        assert clients[1].keyheat.stats()["tracking_opened"] == 1
    finally:
        for side in sides:
            side.close()


def test_the_certificate_that_is_shown_may_itself_be_believed(
    side: Side, own: TlsServer, certificates: Certificates
) -> None:
    pair = certificates.self_signed("alone", "-addext", NAMES)
    swap(own, pair)
    client = side.protected(own.tls_address, ssl=True, ssl_ca_certs=str(pair.certificate))
    until_local(client, lambda: client.get("hot"))


@pytest.mark.parametrize("kind", ["path", "pem", "der", "system file", "system directory"])
def test_authorities_are_found_wherever_the_client_finds_them(
    sync: Side,
    server: TlsServer,
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    tmp_path: Path,
) -> None:
    ca = certificates.ca.certificate
    options: dict[str, Any] = {}
    if kind == "path":
        options["ssl_ca_path"] = str(certificates.hashed(ca))
    elif kind == "pem":
        options["ssl_ca_data"] = ca.read_text()
    elif kind == "der":
        options["ssl_ca_data"] = ssl.PEM_cert_to_DER_cert(ca.read_text())
    else:
        is_file = kind == "system file"
        monkeypatch.setenv("SSL_CERT_FILE", str(ca if is_file else tmp_path / "none"))
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path if is_file else certificates.hashed(ca)))
    client = sync.protected(server.tls_address, ssl=True, **options)
    until_local(client, lambda: client.get("hot"))


# ---------------------------------------------------------------- what cannot be kept


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_3, int(ssl.TLSVersion.TLSv1_3)])
def test_a_version_the_client_does_not_accept_is_not_accepted(
    side: Side, own: TlsServer, trusting: dict[str, Any], version: int
) -> None:
    client = side.protected(own.tls_address, ssl_min_version=version, **trusting)
    assert client.get("hot") == b"1"
    with own.client() as admin:
        admin.config_set("tls-protocols", "TLSv1.2")
    assert "TLS: the server refuses: ProtocolVersion" in why_not(client)


def test_tls_1_2_is_spoken(side: Side, own: TlsServer, trusting: dict[str, Any]) -> None:
    with own.client() as admin:
        admin.config_set("tls-protocols", "TLSv1.2")
    client = side.protected(own.tls_address, **trusting)
    until_local(client, lambda: client.get("hot"))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ssl_ciphers", "ECDHE+AESGCM"),
        ("ssl_validate_ocsp", True),
        ("ssl_validate_ocsp_stapled", True),
        ("ssl_include_verify_flags", ["VERIFY_CRL_CHECK_LEAF"]),
        ("redis_connect_func", lambda connection: connection.on_connect()),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_named(
    sync: Side, server: TlsServer, trusting: dict[str, Any], name: str, value: Any
) -> None:
    client = sync.protected(server.tls_address, **trusting)
    if isinstance(value, list):
        value = [ssl.VerifyFlags[each] for each in value]
    # Given late: what OCSP and revocation lists need is not there for the client's own connections.
    assert client.get("hot") == b"1"
    raw(client).connection_pool.connection_kwargs[name] = value
    assert why_not(client).startswith(f"TLS: {name}")


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_connection_class_of_ones_own_is_refused(
    side: Side, server: TlsServer, certificates: Certificates, library: str
) -> None:
    module = {"redis": redis, "valkey": valkey}[library]
    module = __import__(f"{module.__name__}.asyncio", fromlist=["x"]) if side.is_aio else module

    class Pinned(module.connection.SSLConnection):  # type: ignore[misc, name-defined]
        pass

    host, port = server.tls_address.split(":")
    ca = str(certificates.ca.certificate)
    pool = module.ConnectionPool(connection_class=Pinned, host=host, port=int(port), ssl_ca_certs=ca)
    client = side.protect(side.wrap(single_class(library, side.kind).from_pool(pool)))
    assert "Pinned" in why_not(client)


def test_a_server_without_tls_is_not_spoken_to_in_plain_text(
    sync: Side, server: TlsServer, trusting: dict[str, Any]
) -> None:
    with server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "plain", "reset", "on", ">secret", "~*", "+@all")
        client = sync.protected(server.tls_address, username="plain", password="secret", **trusting)
        assert client.get("hot") == b"1"
        raw(client).connection_pool.connection_kwargs["port"] = server.port
        assert "TLS: " in why_not(client)
        assert [each["laddr"] for each in admin.client_list() if each["user"] == "plain"] == [
            server.tls_address
        ]


def test_a_killed_connection_comes_back(
    side: Side, server: TlsServer, trusting: dict[str, Any], eventually: Eventually
) -> None:
    client = side.protected(server.tls_address, **trusting)
    until_local(client, lambda: client.get("hot"))
    with server.client() as admin:
        for each in admin.client_list():
            if each["name"] == "keyheat-tracking":
                admin.client_kill_filter(_id=each["id"])
    eventually(lambda: client.keyheat.stats()["tracking_lost"] >= 1)
    until_local(client, lambda: client.get("hot"))
    assert is_local(client, lambda: client.get("hot"))
