#!/usr/bin/env bash
# Fuzz every target for a share of the seconds given, and fail if one of them crashes.
#
#     fuzz/run.sh SECONDS [TARGET ...]
#
# Needs stable Rust and a C++ compiler, nothing else: `cargo fuzz` would pass the flags below itself,
# but wants a nightly compiler for its sanitizers. There is no address sanitizer here: keyheat-resp
# has no unsafe code, so what is looked for are panics, broken promises and runaway memory.
#
# A crash is kept in fuzz/artifacts/TARGET/. To see it again:
#
#     fuzz/target/HOST/release/TARGET fuzz/artifacts/TARGET/crash-...
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
seconds=${1:?"usage: fuzz/run.sh SECONDS [TARGET ...]"}
shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(request reply command)
share=$((seconds / ${#targets[@]}))
[ "$share" -ge 1 ] || { echo "fuzz/run.sh: ${#targets[@]} targets need at least as many seconds" >&2; exit 2; }
command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || {
    echo "fuzz/run.sh: no C++ compiler (Debian: g++), which the fuzzer's runtime needs" >&2
    exit 2
}

# Apart from the product's target directory: other flags would rebuild everything there.
export CARGO_TARGET_DIR=${KEYHEAT_FUZZ_TARGET_DIR:-$here/target}
coverage=(
    -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares
    -Ccodegen-units=1
    --cfg fuzzing
)
# With an explicit --target the flags are not applied to build scripts, which have no fuzzer to
# report to and would not link.
host=$(rustc -vV | sed -n 's/^host: //p')
echo "fuzz: building ${targets[*]}"
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
RUSTFLAGS="${coverage[*]}" cargo build --quiet --locked --release --target "$host" \
    --manifest-path "$here/Cargo.toml" "${bins[@]}"

for target in "${targets[@]}"; do
    artifacts=$here/artifacts/$target
    # New finds go beside the build; fuzz/corpus/ holds the few inputs that are committed.
    finds=$CARGO_TARGET_DIR/corpus/$target
    mkdir -p "$artifacts" "$finds"
    log=$CARGO_TARGET_DIR/$target.log
    echo "fuzz: $target for ${share}s"
    options=(-max_total_time="$share" -max_len=4096 -timeout=10 -rss_limit_mb=1024
        -print_final_stats=1 -artifact_prefix="$artifacts/")
    [ ! -f "$here/corpus/$target.dict" ] || options+=(-dict="$here/corpus/$target.dict")
    if ! "$CARGO_TARGET_DIR/$host/release/$target" "${options[@]}" "$finds" "$here/corpus/$target" \
        >"$log" 2>&1; then
        grep -A 4 'panicked at' "$log" >&2 || true
        tail -n 12 "$log" >&2
        echo "fuzz: $target FAILED; its input is in $artifacts, its output in $log" >&2
        exit 1
    fi
    grep -E '^stat::number_of_executed_units|^#.*DONE' "$log"
    # A fuzzer that sees no coverage runs blind, and would call anything sound.
    grep -qE '^#[0-9]+.*DONE +cov: [1-9][0-9]+' "$log" || {
        echo "fuzz: $target FAILED: it was built without coverage; see $log" >&2
        exit 1
    }
done
