"""One contender per host: a turn that is an `flock` on a file, given back by the kernel when its holder dies.

The file lies in a directory only this user can enter (`$XDG_RUNTIME_DIR/keyheat`, else
`keyheat-<uid>` in the temporary directory); a directory that others own or can write to is not
used, and then there is no turn on this host, only in each process. Whoever gives a turn back
removes its file, so files do not pile up; whoever takes one makes sure that the file it locked is
still the one at that path.

A forked child inherits open files, and with them the turn: it closes them, which leaves the turn to
the parent (`LOCK_UN` would not).
"""

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
from pathlib import Path
from typing import Final

from keyheat.mitigate import _lifetime as lifetime

_ATTEMPTS: Final = 8


class HostTurns:
    """Takes and gives back turns.

    Args:
        directory: Where the files lie; None for the private directory of this user.
    """

    def __init__(self, directory: Path | None = None) -> None:
        self._held: dict[int, Path] = {}
        self._directory = _private(directory if directory is not None else _default_directory())
        self._hook = lifetime.in_forked_child(self._forked)

    @property
    def is_usable(self) -> bool:
        """Whether this host has a directory for turns."""
        return self._directory is not None

    def path(self, what: bytes) -> Path:
        """The file of one turn; the name is hashed, for it may be personal data."""
        assert self._directory is not None
        return self._directory / (hashlib.sha256(what).hexdigest()[:40] + ".turn")

    def try_take(self, what: bytes) -> int | None:
        """Take a turn without waiting.

        Returns:
            What to give back, or None if another process has the turn.

        Raises:
            OSError: The file cannot be made.
        """
        path = self.path(what)
        for _ in range(_ATTEMPTS):
            turn = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_at(turn, path):
                    self._held[turn] = path
                    return turn
            except BlockingIOError:
                os.close(turn)
                return None
            except BaseException:
                os.close(turn)
                raise
            os.close(turn)  # its last holder removed it between our open and our lock
        return None

    def give_back(self, turn: int) -> None:
        """Let another process have it."""
        path = self._held.pop(turn, None)
        if path is None:
            return  # inherited from the parent, who has it still
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(turn)

    def _forked(self) -> None:
        held, self._held = self._held, {}
        for turn in held:
            with contextlib.suppress(OSError):
                os.close(turn)


def _is_at(turn: int, path: Path) -> bool:
    try:
        there = path.stat(follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(turn)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _default_directory() -> Path:
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "keyheat"
    return Path(tempfile.gettempdir()) / f"keyheat-{os.getuid()}"


def _private(directory: Path) -> Path | None:
    """The directory if it is ours alone, made if it is not there."""
    try:
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        found = directory.stat(follow_symlinks=False)
    except OSError:
        return None
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
    return directory if is_ours else None
