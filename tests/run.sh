#!/usr/bin/env bash
# The one test command: format, lints, documentation, all tests; what was skipped and why; one closing line.
# Needs Rust and a C compiler (for the codecs of bcolz arrays); installs what else it needs into target/.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p target
log=target/test.log

step() { printf '\n== %s\n' "$*"; "$@"; }

step cargo fmt --check
step cargo clippy --release --all-targets -- --deny warnings
RUSTDOCFLAGS="--deny warnings" step cargo doc --release --no-deps
step cargo test --release --no-fail-fast 2>&1 | tee "$log"

printf '\n== Skipped\n'
grep '^SKIPPED' "$log" || echo "nothing"
awk '
    /^test result:/ {
        for (i = 1; i <= NF; i++) {
            if ($(i + 1) ~ /^passed/) passed += $i
            if ($(i + 1) ~ /^failed/) failed += $i
            if ($(i + 1) ~ /^ignored/) ignored += $i
        }
    }
    END {
        printf "\n%d passed, %d failed, %d skipped\n", passed, failed, ignored
    }' "$log"
