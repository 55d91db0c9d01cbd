"""Check the arrows between the Rust crates: which crate may depend on which.

core, resp and net depend on nothing of ours, client and proxy on those three, py on all, nothing on py.
Dev-dependencies count too: a test that needs an arrow the code may not have is in the wrong crate.
"""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# crate -> the crates of ours it may name. Adding a crate? Add it here, and to ARCHITECTURE.md.
ALLOWED: dict[str, set[str]] = {
    "keyheat-core": set(),
    "keyheat-resp": set(),
    "keyheat-net": set(),
    "keyheat-client": {"keyheat-core", "keyheat-resp", "keyheat-net"},
    "keyheat-proxy": {"keyheat-core", "keyheat-resp", "keyheat-net"},
    "keyheat-py": {"keyheat-core", "keyheat-resp", "keyheat-net", "keyheat-client", "keyheat-proxy"},
    "keyheat-bench-core": {"keyheat-core", "keyheat-resp"},
    "keyheat-bench-loop": set(),
}
TABLES = ("dependencies", "dev-dependencies", "build-dependencies")


def manifests() -> list[Path]:
    """The manifests of the workspace members."""
    workspace = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["workspace"]
    return [ROOT / member / "Cargo.toml" for member in workspace["members"]]


def violations() -> list[str]:
    """One sentence for each arrow that should not be there."""
    found: list[str] = []
    for path in manifests():
        manifest = tomllib.loads(path.read_text(encoding="utf-8"))
        name = manifest["package"]["name"]
        if name not in ALLOWED:
            found.append(f"{path.relative_to(ROOT)}: tools/arrows.py does not know the crate {name}")
            continue
        named = {dep for table in TABLES for dep in manifest.get(table, {}) if dep.startswith("keyheat")}
        found += [
            f"{path.relative_to(ROOT)}: {name} must not depend on {dep}"
            for dep in sorted(named - ALLOWED[name])
        ]
    return found


if __name__ == "__main__":
    problems = violations()
    print("\n".join(problems) or f"crate arrows hold: {len(manifests())} crates")
    sys.exit(1 if problems else 0)
