"""Settings of `keyheat proxy`: a file, flags over it, secrets in files of their own."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from keyheat.cli.flags import FLAGS, WITHOUT_FLAG
from keyheat.detect.rules import DEFAULT_RULE, Rule
from keyheat.errors import ConfigError
from keyheat.proxy.config import ConfigSource
from keyheat.proxy.native import make_proxy
from keyheat.proxy.settings import ProxySettings
from keyheat.proxy.url import parse_url
from tests.conftest import RunKeyheat

REFERENCE = Path(__file__).parents[2] / "docs/reference/proxy.toml"
_CODE = re.compile(r"# ?((?:[a-z_]+ = |\[|\]| {4}\{).*)")

SALE = """
[[longer_expiry]]
name = "sale"
match = { prefix = "shop:" }
starts = 2027-03-01T00:00:00+01:00
ends = 2027-03-03T00:00:00+01:00
ttl_s = 60
"""


def reference() -> str:
    """The reference with every setting uncommented."""
    lines = (_CODE.fullmatch(line) for line in REFERENCE.read_text().splitlines())
    return "\n".join(found[1] for found in lines if found)


def load(path: Path, text: str, **flags: Any) -> ProxySettings:
    file = path / "proxy.toml"
    file.write_text(text)
    return ConfigSource(file, flags).load()


def test_the_reference_has_every_setting_with_its_default() -> None:
    values = tomllib.loads(reference())
    assert list(values) == [*(name for name in ProxySettings.model_fields if name != "rules"), "rules"]
    defaults = ProxySettings()
    for name, value in values.items():
        default = getattr(defaults, name)
        default = list(default) if isinstance(default, tuple) else default
        if name == "rules":
            assert [Rule.model_validate(rule) for rule in value] == [DEFAULT_RULE]
        elif name == "upstream":
            assert parse_url(value) == default
        else:
            assert value == ("" if default is None else default), name
            assert type(value) is type(value if default is None else default), name


def test_every_setting_of_the_reference_is_explained() -> None:
    blocks = REFERENCE.read_text().split("\n\n")
    for name in ProxySettings.model_fields:
        block = next(block for block in blocks if f"# {name} = " in block or f"[[{name}]]" in block)
        assert block.startswith("# "), name
        assert block.count("\n") > 0, name


def test_the_reference_uncommented_changes_nothing(tmp_path: Path) -> None:
    settings = load(tmp_path, reference())
    assert settings.to_json() == {**ProxySettings().to_json(), "rules": [DEFAULT_RULE.to_json()]}
    make_proxy(settings)


def test_there_is_a_flag_for_every_setting() -> None:
    assert {*FLAGS, *WITHOUT_FLAG} == {*ProxySettings.model_fields}


def test_a_flag_overrides_the_file_and_nothing_else(tmp_path: Path) -> None:
    settings = load(tmp_path, "cache_bytes = 7\nwindow_ms = 200\nlocal_cache = false", cache_bytes="9")
    assert (settings.cache_bytes, settings.window_ms, settings.local_cache) == (9, 200, False)
    assert settings.clients_max == ProxySettings().clients_max


def test_paths_of_a_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(
        '[[rules]]\nname="r"\nmatch={any=true}\nlevels=[{metric="ops",enter_per_s=1}]'
    )
    settings = load(tmp_path, 'rules_file = "rules.toml"\nunix_socket = "s"')
    assert settings.rules is not None
    assert settings.rules[0].name == "r"
    assert settings.unix_socket == tmp_path / "s"


def test_a_password_is_read_from_its_file_and_never_shown(tmp_path: Path) -> None:
    (tmp_path / "password").write_text("s3cret\n")
    settings = load(
        tmp_path, 'upstream = "h:1"\nupstream_username = "u"\nupstream_password_file = "password"'
    )
    upstream = settings.to_json()["upstream"]
    assert (upstream["username"], upstream["password"]) == ("u", "s3cret")
    assert "s3cret" not in f"{settings!r} {settings.upstream}"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cache_byte = 1", "proxy.toml: cache_byte: no such key; did you mean cache_bytes?"),
        ("nonsense = 1", "proxy.toml: nonsense: no such key; accepted: listen, "),
        ("cache_bytes = 0", r"proxy.toml: cache_bytes: .*greater than 0"),
        ('log = "loud"', "proxy.toml: log: accepted: 'error', 'warn', 'info' or 'debug'"),
        ('listen = "1:2:3"', "proxy.toml: listen: .*accepted: host:port"),
        ('upstream = "http://h"', "proxy.toml: upstream: .*accepted: redis://"),
        ("= 1", "proxy.toml is not TOML"),
        ('rules_file = "nowhere"', "nowhere: No such file"),
        ('upstream_password_file = "nowhere"', "upstream_password_file: cannot read .*nowhere"),
        ('upstream_username = "u"', "upstream_username: a user needs a password"),
        ('upstream = "redis://:x@h"\nupstream_password_file = "p"', "has a password already"),
        ('[[rules]]\nname = "r"\nmatch = {any = true}\nlevels = []\n', r"rules\[0\]\.levels"),
        ("[[rules]]\nname = 'r'\ncolour = 1", r"rules\[0\]\.colour: no such key"),
        (SALE.replace("ttl_s = 60", ""), r"longer_expiry\[0\]\.ttl_s: is missing"),
        (SALE.replace("+01:00", ""), r"longer_expiry\[0\]\.starts: .*timezone"),
        (SALE.replace("03-03", "03-01"), r"longer_expiry\[0\]: accepted: ends later than starts"),
        (SALE.replace("prefix", "suffix"), r"longer_expiry\[0\]\.match\.suffix: no such key"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(tmp_path, text)


def test_a_mistake_on_the_command_line_is_not_the_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the command line: shards: "):
        load(tmp_path, "shards = 1", shards="many")


def test_check_says_whether_a_file_can_be_used(keyheat: RunKeyheat, tmp_path: Path) -> None:
    file = tmp_path / "proxy.toml"
    file.write_text(reference())
    done = keyheat("proxy", "--config", str(file), "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: ok\n", "")
    file.write_text("max_staleness_ms = 3")
    done = keyheat("proxy", "--config", str(file), "--check")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"keyheat: the config file {file}: max_staleness_ms: accepted: 0")
    done = keyheat("proxy", "--config", str(tmp_path / "none"), "--check")
    assert done.returncode == 2
    assert "No such file" in done.stderr
