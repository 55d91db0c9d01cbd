"""Small C programs that belong to the benchmarks, compiled by `cc` into `target/bench-c`."""

import shutil
import subprocess
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent


def compile_c(name: str, target: Path) -> Path:
    """The program made of `name`.c, made anew if the source or a header is newer.

    Raises:
        OSError: There is no compiler, or it does not accept the source.
    """
    source, made = _HERE / f"{name}.c", target / "bench-c" / name
    newest = max(file.stat().st_mtime for file in [source, *_HERE.glob("*.h")])
    if made.exists() and made.stat().st_mtime > newest:
        return made
    compiler = shutil.which("cc")
    if compiler is None:
        raise OSError(f"{name}: no C compiler (cc) here")
    made.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [compiler, "-O2", "-o", str(made), str(source)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise OSError(f"{name}: cc does not accept it: {done.stderr[-300:]}")
    return made
