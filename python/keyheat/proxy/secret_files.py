"""Secrets that lie in files."""

from pathlib import Path

from keyheat.errors import ConfigError


def read_secret(path: Path, key: str) -> str:
    """What a file holds, without the newline at its end.

    Args:
        path: The file.
        key: The setting that names it.

    Raises:
        ConfigError: It cannot be read, or is empty.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{key}: cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{key}: {path} is not UTF-8") from error
    # Editors and `echo` end a file with a newline, which no password has.
    secret = text.rstrip("\r\n")
    if not secret:
        raise ConfigError(f"{key}: {path} is empty; accepted: the secret alone")
    return secret
