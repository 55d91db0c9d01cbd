"""Print what pyproject.toml asks for, run-time and development, as a requirements file.

The pins are in constraints.txt; pip older than 25.1 cannot read dependency groups itself.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def requirements() -> list[str]:
    """The run-time and development requirements of pyproject.toml, in its order."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return [*project["project"]["dependencies"], *project["dependency-groups"]["house"]]


if __name__ == "__main__":
    print("\n".join(requirements()))
