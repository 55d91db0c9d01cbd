"""Turn `data/commands.json`, `data/newer.json` and the reviews into `src/command/table.rs`.

python render.py            write the table
python render.py --check    fail if the committed table is not what would be written
"""

import json
import pathlib
import sys

import review

CRATE = pathlib.Path(__file__).resolve().parent.parent
TABLE = CRATE / "src" / "command" / "table.rs"

HEAD = """\
//! The command table: generated, do not edit.
//!
//! From `data/commands.json` ({servers}; {date}),
//! `data/newer.json` and `generate/review.py`. To read the commands of newer servers and write
//! this file anew:
//!
//! ```text
//! python crates/resp/generate/collect.py VALKEY_SERVER REDIS_SERVER
//! python crates/resp/generate/render.py
//! ```

use super::Access::{{NotKey, Read, Write}};
use super::Cacheable::{{HashFields, No, WholeHash, Yes}};
use super::{{Access, Cacheable, Command, Flags, KeySpec, Part}};

const fn range(first: u8, last: i16, step: u8, access: Access) -> KeySpec {{
    KeySpec::Range {{
        first,
        last,
        step,
        access,
    }}
}}

const fn part(first: u8, last: i16, step: u8, access: Access) -> Part {{
    Part::Range {{
        first,
        last,
        step,
        access,
    }}
}}

const fn counted(count: u8, first: u8, step: u8, access: Access) -> Part {{
    Part::Counted {{
        count,
        first,
        step,
        access,
    }}
}}

const fn flags(flags: &[Flags]) -> Flags {{
    let (mut all, mut i) = (Flags::NONE, 0);
    while i < flags.len() {{
        all = all.union(flags[i]);
        i += 1;
    }}
    all
}}

const fn command(
    name: &'static str,
    arity: i16,
    flags: Flags,
    keys: KeySpec,
    cacheable: Cacheable,
    subcommands: &'static [Command],
) -> Command {{
    Command {{
        name,
        arity,
        flags,
        keys,
        cacheable,
        subcommands,
    }}
}}

"""

ACCESS = {"read": "Read", "write": "Write", "not_key": "NotKey"}
ASKED_FLAGS = {"asking", "no_auth", "no_multi", "pubsub"}


def load() -> tuple[dict, dict[str, dict]]:
    """Return the header of the data, and all commands by name."""
    data = json.loads((CRATE / "data" / "commands.json").read_text())
    newer = json.loads((CRATE / "data" / "newer.json").read_text())
    # A server's own word goes before what was entered by hand.
    return data, {**newer["commands"], **data["commands"]}


def flatten(reasons: dict[str, list[str]]) -> set[str]:
    """Return all names of a review, each of which may be there once."""
    names = [name for names in reasons.values() for name in names]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SystemExit(f"reviewed twice: {sorted(twice)}")
    return set(names)


def settle(what: str, asked: set[str], yes: set[str], no: set[str], known: set[str]) -> None:
    """Refuse reviews that are missing, contradictory, or of commands that do not exist."""
    for problem, names in {
        "not reviewed": asked - yes - no,
        "both yes and no": yes & no,
        "no such command": (yes | no) - known,
    }.items():
        if names:
            raise SystemExit(f"{what}: {problem}: {sorted(names)}; see review.py")


def is_asked_cacheable(name: str, command: dict) -> bool:
    """Whether review.py must say if the command's answer may be kept."""
    if "readonly" not in command["flags"] or not command["keys"]:
        return False
    first, last, _, access = command["keys"].get("range", (0, -1, 1, "read"))
    return name in review.SEVERAL_KEYS or (first == last and access == "read")


def apply_reviews(commands: dict[str, dict]) -> None:
    """Add `cacheable` and the flags `session` and `may_write`."""
    known = set(commands)
    kept = {name: kind for kind, names in review.CACHEABLE.items() for name in names}
    asked = {name for name, command in commands.items() if is_asked_cacheable(name, command)}
    settle("cacheable", asked, set(kept), flatten(review.NOT_CACHEABLE), known)
    if extra := set(kept) - asked:
        raise SystemExit(f"cacheable, but not read-only with one key: {sorted(extra)}")
    asked = {
        name
        for name, command in commands.items()
        if ASKED_FLAGS & {*command["flags"]}
        or name.startswith(("client|", "script|"))
        or (not command["keys"] and "|" not in name)
    }
    session = flatten(review.SESSION)
    settle("session", asked, session, flatten(review.NOT_SESSION), known)
    for name, command in commands.items():
        command["cacheable"] = kept.get(name, "no")
        command["flags"] = sorted(
            {*command["flags"]}
            | ({"session"} if name in session else set())
            | ({"may_write"} if name in review.MAY_WRITE else set())
        )


def keys(spec: dict | None) -> str:
    """Write the Rust of a key specification."""
    if spec is None:
        return "KeySpec::None"
    if "range" in spec:
        first, last, step, access = spec["range"]
        return f"range({first}, {last}, {step}, {ACCESS[access]})"
    if "parts" in spec:
        names = {"range": "part", "counted": "counted"}
        parts = [
            f"{names[kind]}({a}, {b}, {step}, {ACCESS[access]})" for kind, a, b, step, access in spec["parts"]
        ]
        return f"KeySpec::Parts(&[{', '.join(parts)}])"
    return {
        "sort": "KeySpec::Sort",
        "georadius": "KeySpec::GeoRadius",
        "streams": f"KeySpec::Streams {{ access: {ACCESS[spec['access']]} }}",
        "migrate": "KeySpec::Migrate",
    }[spec["special"]]


def entry(name: str, command: dict, indent: str, subcommands: str) -> str:
    """Write one line (or, where it is long, one block) of the table."""
    flags = ", ".join(f"Flags::{flag.upper()}" for flag in command["flags"])
    flags = f"flags(&[{flags}])" if flags else "Flags::NONE"
    cacheable = {"no": "No", "yes": "Yes", "hash_fields": "HashFields", "whole_hash": "WholeHash"}
    fields = [
        f'"{name}"',
        str(command["arity"]),
        flags,
        keys(command["keys"]),
        cacheable[command["cacheable"]],
        subcommands,
    ]
    return f"{indent}command({', '.join(fields)}),\n"


def render(data: dict, commands: dict[str, dict]) -> str:
    """Write the whole file."""
    servers = " and ".join(f"{server['name']} {server['version']}" for server in data["servers"])
    out = [HEAD.format(servers=servers, date=data["generated"])]
    top = sorted(name for name in commands if "|" not in name)
    subs: dict[str, list[str]] = {}
    for name in sorted(commands):
        if "|" in name:
            subs.setdefault(name.split("|")[0], []).append(name)
    out.append("// One line a command, however long: a change of one is one line of the diff.\n")
    for name, names in subs.items():
        out.append(f"#[rustfmt::skip]\nstatic {name.upper()}: [Command; {len(names)}] = [\n")
        out += [entry(sub, commands[sub], "    ", "&[]") for sub in names]
        out.append("];\n\n")
    out.append("/// Every command, by name.\n#[rustfmt::skip]\n")
    out.append(f"pub(super) static COMMANDS: [Command; {len(top)}] = [\n")
    for name in top:
        below = f"&{name.upper()}" if name in subs else "&[]"
        out.append(entry(name, commands[name], "    ", below))
    out.append("];\n")
    return "".join(out)


def main(arguments: list[str]) -> None:
    """Write or check the table."""
    data, commands = load()
    apply_reviews(commands)
    text = render(data, commands)
    if arguments == ["--check"]:
        if TABLE.read_text() != text:
            raise SystemExit(f"{TABLE} is not what {pathlib.Path(__file__).name} writes: run it")
    elif arguments:
        raise SystemExit(__doc__)
    else:
        TABLE.write_text(text)
        print(f"{TABLE.name}: {len(commands)} commands")


if __name__ == "__main__":
    main(sys.argv[1:])
