"""Child processes that end with their parent, however the parent ends.

A child started here is in a process group of its own, so a Ctrl-C on the terminal reaches keyheat
alone and keyheat ends its children in order. Should keyheat be killed (SIGKILL), the kernel ends the
child (PR_SET_PDEATHSIG). The request is made by a small launcher that then becomes the child, and
not between fork and exec, where Python code is not safe beside the native module's threads.

PR_SET_PDEATHSIG follows the *thread* that started the child: start children from the main thread, or
from one that lives as long as they should. Systems other than Linux have no such request; there a
killed keyheat leaves its children behind.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import IO, Final

_PR_SET_PDEATHSIG: Final = 1
_LAUNCHER: Final = """\
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


def die_with_parent(parent_pid: int) -> None:
    """Make the kernel end this process when its parent ends; exits if the parent is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def spawn(command: Sequence[str], *, cwd: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a program that ends with this process; its output goes to `log`."""
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid()), *command]
    return subprocess.Popen(
        launcher, cwd=cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
    )


def end(process: "subprocess.Popen[bytes]", *, timeout_s: float = 3.0) -> None:
    """End a child: SIGTERM (and SIGCONT, should it be stopped), then SIGKILL after `timeout_s`."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
