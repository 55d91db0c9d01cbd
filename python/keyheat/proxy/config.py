"""A proxy's settings from a file, from flags, and from files that hold secrets.

A flag overrides the file, and what neither names has its default. A password is named by the path of a file
that holds it: a command line is readable by everybody on the machine, and an environment by whatever the
process starts or reports to. `${CREDENTIALS_DIRECTORY}` of systemd, a Secret of Kubernetes and a secret of
Docker are such files.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from keyheat.detect.rules import RulesFile, explain, load_rules
from keyheat.errors import ConfigError
from keyheat.proxy.secret_files import read_secret
from keyheat.proxy.settings import ProxySettings


@dataclass(frozen=True)
class ConfigSource:
    """Where settings come from; read again for each reload.

    Attributes:
        path: The file; None if there is none.
        flags: What the command line says, by setting.
    """

    path: Path | None
    flags: Mapping[str, Any]

    def load(self) -> ProxySettings:
        """The settings, with what other files hold read into them.

        Raises:
            ConfigError: Something cannot be read or is not accepted; the message names the file or the
                flag, the key and the accepted values.
        """
        values = _values_of(self.path) if self.path is not None else {}
        if self.path is not None:
            _checked(values, f"the config file {self.path}")
        settings = _checked({**values, **self.flags}, "the command line")
        return _with_account(_with_rules(settings))


def _values_of(path: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {path} is not TOML: {error}") from error
    for name, value in values.items():
        if name not in ProxySettings.model_fields:
            raise ConfigError(f"the config file {path}: {name}: no such key; {_accepted(name)}")
        is_path = name.endswith("_file") or name == "unix_socket"
        if is_path and isinstance(value, str) and value:
            # A service's working directory is hardly ever what is meant.
            values[name] = path.parent / value
    return values


def _accepted(name: str) -> str:
    near = difflib.get_close_matches(name, ProxySettings.model_fields, n=1)
    return f"did you mean {near[0]}?" if near else f"accepted: {', '.join(ProxySettings.model_fields)}"


def _checked(values: dict[str, Any], where: str) -> ProxySettings:
    try:
        if values.get("rules") is not None:
            RulesFile.model_validate({"rules": values["rules"]})
        settings = ProxySettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error)}") from error
    _check_tls(settings, where)
    if settings.rules is not None and settings.rules_file is not None:
        raise ConfigError(f"{where}: rules_file: accepted: rules in a file, or [[rules]] here, not both")
    return settings


def _check_tls(settings: ProxySettings, where: str) -> None:
    """What would be ignored must not be: it is asked for to be safe."""
    for side, is_on, how in (
        ("tls_", settings.tls_listen is not None, "tls_listen"),
        (
            "upstream_tls_",
            settings.upstream is not None and settings.upstream.is_tls,
            "an upstream of rediss://",
        ),
    ):
        fields = type(settings).model_fields.items()
        of_side = [(name, each.default) for name, each in fields if name.startswith(side)]
        given = [name for name, default in of_side if getattr(settings, name) != default]
        if given and not is_on:
            raise ConfigError(f"{where}: {given[0]}: has no effect without {how}")
    if settings.upstream_tls_key_file is not None and settings.upstream_tls_cert_file is None:
        raise ConfigError(f"{where}: upstream_tls_key_file: needs upstream_tls_cert_file")


def _with_rules(settings: ProxySettings) -> ProxySettings:
    if settings.rules_file is None:
        return settings
    return settings.model_copy(update={"rules": load_rules(settings.rules_file)})


def _with_account(settings: ProxySettings) -> ProxySettings:
    """The account that the settings name, in the URL."""
    url, path = settings.upstream, settings.upstream_password_file
    if url is None:
        return settings
    if settings.upstream_username is not None:
        url = replace(url, username=settings.upstream_username)
    if path is not None:
        if url.password is not None:
            raise ConfigError("upstream_password_file: the URL of upstream has a password already")
        url = replace(url, password=read_secret(path, "upstream_password_file"))
    if url.username is not None and url.password is None:
        raise ConfigError("upstream_username: a user needs a password: upstream_password_file names its file")
    if settings.sentinel_password_file is not None:
        secret = read_secret(settings.sentinel_password_file, "sentinel_password_file")
        url = replace(url, sentinel_username=settings.sentinel_username, sentinel_password=secret)
    elif settings.sentinel_username is not None:
        raise ConfigError("sentinel_username: a user needs a password: sentinel_password_file names its file")
    return settings.model_copy(update={"upstream": url})
