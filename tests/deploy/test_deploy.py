"""What is in `deploy/` says nothing that the command does not know, and keeps what it promises."""

import re
import shlex
import shutil
import socket
import subprocess
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from keyheat.cli.flags import FLAGS
from keyheat.proxy.config import ConfigSource
from keyheat.proxy.settings import ProxySettings
from tests.conftest import StartKeyheat

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/keyheat-proxy.service"
DOCKERFILE = ROOT / "deploy/Dockerfile"
MANIFESTS = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
KNOWN = {"--config", "--check", *(f"--{name.replace('_', '-')}" for name in FLAGS)}
DRAIN_S = ProxySettings().drain_timeout_s


def are_known(words: list[str]) -> bool:
    """Whether the command understands such arguments."""
    assert words[0] == "proxy"
    return {word for word in words if word.startswith("--")} <= KNOWN


def test_what_the_guide_shows_can_be_said() -> None:
    guide = (ROOT / "docs/how-to/run-the-proxy.md").read_text()
    shown = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    assert len(shown) >= 2
    for text in shown:
        assert tomllib.loads(text).keys() <= ProxySettings.model_fields.keys()
    assert {word for word in re.findall(r"`([a-z_]+)`", guide) if "_" in word} <= {
        *ProxySettings.model_fields,
    }


# ---------------------------------------------------------------- systemd


def directives() -> dict[str, list[str]]:
    """Values of the unit, by `Section.Name`; a name may come several times."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in UNIT.read_text().splitlines():
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
        elif line and not line.startswith("#"):
            name, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(f"{section}.{name}", []).append(value)
    return found


def test_the_unit_calls_the_command_as_it_is() -> None:
    unit = directives()
    commands = [
        line for name in ("ExecStartPre", "ExecStart", "ExecReload") for line in unit[f"Service.{name}"]
    ]
    calls = [words for words in map(shlex.split, commands) if words[0].endswith("keyheat")]
    assert len(calls) == 3
    assert all(are_known(words[1:]) for words in calls)
    assert "/bin/kill -HUP $MAINPID" in unit["Service.ExecReload"]


def test_the_unit_leaves_time_to_drain_and_room_for_clients() -> None:
    unit = directives()
    assert int(unit["Service.TimeoutStopSec"][0]) > DRAIN_S
    assert int(unit["Service.LimitNOFILE"][0]) > 2 * ProxySettings().clients_max
    assert unit["Service.Type"] == ["notify"]
    assert unit["Service.DynamicUser"] == unit["Service.NoNewPrivileges"] == ["yes"]


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze on PATH: it reads units")
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/keyheat/bin/keyheat", "/bin/true"))
    done = subprocess.run(
        [analyze, "verify", "--man=no", "--recursive-errors=no", str(copy)],
        capture_output=True,
        text=True,
        check=False,
    )
    about_it = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert (done.returncode, about_it) == (0, []), done.stderr


def test_the_manager_is_told_when_it_serves_and_when_it_ends(
    start_keyheat: StartKeyheat, valkey: str, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        path = tmp_path / "notify"
        channel.bind(str(path))
        channel.settimeout(20)
        words = ("proxy", "--listen", "127.0.0.1:0", "--http", "none", "--upstream", valkey)
        process = start_keyheat(*words, NOTIFY_SOCKET=str(path))
        assert channel.recv(100) == b"READY=1"
        process.terminate()
        assert channel.recv(100) == b"STOPPING=1"
        assert process.wait(20) == 0


# ---------------------------------------------------------------- Docker


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, lines put together again."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    whole = "\n".join(lines).replace("\\\n", " ")
    split = (line.partition(" ") for line in whole.splitlines() if line.strip())
    return [(name, " ".join(rest.split())) for name, _, rest in split]


def words_of(name: str) -> list[str]:
    value = next(rest for each, rest in instructions() if each == name)
    return re.findall(r'"([^"]*)"', value)


def test_the_image_runs_the_command_and_not_as_root() -> None:
    last = max(i for i, (name, _) in enumerate(instructions()) if name == "FROM")
    stage = dict(instructions()[last:])
    assert [name for name, _ in instructions()].count("FROM") == 2
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", stage["USER"])
    assert words_of("ENTRYPOINT") == ["keyheat"]
    assert are_known(words_of("CMD"))
    assert stage["STOPSIGNAL"] == "SIGTERM"


def test_the_image_is_made_of_what_is_there() -> None:
    ignored = (ROOT / "deploy/Dockerfile.dockerignore").read_text()
    for name, value in instructions():
        if name == "COPY" and not value.startswith("--from"):
            *sources, _ = value.split()
            for source in sources:
                assert (ROOT / source).exists(), source
                assert f"!{source}\n" in ignored, source
        if name == "FROM":
            assert re.search(r":\d", value), value


# ---------------------------------------------------------------- Kubernetes


@pytest.fixture(params=MANIFESTS, ids=lambda path: path.stem)
def objects(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The objects of a manifest, by kind."""
    yaml = pytest.importorskip("yaml", reason="PyYAML reads the manifests (make setup installs it)")
    found = list(yaml.safe_load_all(request.param.read_text()))
    assert all(each["apiVersion"] and each["metadata"]["name"] for each in found)
    return {each["kind"]: each for each in found}


@pytest.fixture
def pod(objects: dict[str, Any]) -> dict[str, Any]:
    whole = objects["Deployment"]["spec"]
    labels = whole["template"]["metadata"]["labels"]
    assert whole["selector"]["matchLabels"] == labels
    spec: dict[str, Any] = whole["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    everybody = [*pod.get("initContainers", []), *pod["containers"]]
    return next(each for each in everybody if each["name"] == "keyheat")


@pytest.fixture
def settings(objects: dict[str, Any], tmp_path: Path) -> ProxySettings:
    """The settings of a manifest, its secret put where it is looked for."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    text: str = objects["ConfigMap"]["data"]["proxy.toml"]
    file = tmp_path / "proxy.toml"
    file.write_text(re.sub(r"(?m)^(upstream_password_file) = .*$", f'\\1 = "{secret}"', text))
    return ConfigSource(file, {}).load()


def test_the_settings_can_be_used_and_the_probes_reach_the_proxy(
    settings: ProxySettings, container: dict[str, Any]
) -> None:
    assert are_known(container["args"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert settings.http == f"0.0.0.0:{ports['http']}"
    if "redis" in ports:
        assert settings.listen == f"0.0.0.0:{ports['redis']}"
    probes = {name: probe["httpGet"] for name, probe in container.items() if name.endswith("Probe")}
    assert {probe["path"] for probe in probes.values()} <= {"/healthz", "/livez"}
    # A server that is down must not have proxies restarted.
    assert probes["livenessProbe"] == {"path": "/livez", "port": "http"}


def test_there_is_time_to_drain(
    settings: ProxySettings, container: dict[str, Any], pod: dict[str, Any]
) -> None:
    hook = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", ["sleep", "0"])
    assert hook[0] == "sleep"
    assert pod["terminationGracePeriodSeconds"] > int(hook[1]) + settings.drain_timeout_s


def test_the_memory_it_may_take_is_below_its_limit(
    settings: ProxySettings, container: dict[str, Any]
) -> None:
    limit = container["resources"]["limits"]["memory"]
    assert limit.endswith("Mi")
    assert settings.cache_bytes + settings.buffers_max_bytes < int(limit.removesuffix("Mi")) * (1 << 20)
    assert container["resources"]["requests"].keys() == {"cpu", "memory"}


def test_it_may_do_little(container: dict[str, Any], pod: dict[str, Any]) -> None:
    security = {**pod.get("securityContext", {}), **container["securityContext"]}
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] > 0
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    volumes = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} <= volumes


def test_alive_is_not_the_same_as_able_to_serve(start_keyheat: StartKeyheat) -> None:
    words = ("proxy", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--upstream", "127.0.0.1:1")
    process = start_keyheat(*words)
    assert process.stdout is not None
    http = process.stdout.readline().rsplit("http on ", 1)[1].strip()
    with urllib.request.urlopen(f"{http}/livez", timeout=5) as answer:
        assert answer.status == 200
    with pytest.raises(urllib.error.HTTPError, match="503"):
        urllib.request.urlopen(f"{http}/healthz", timeout=5)
