#!/usr/bin/env bash
# For a machine with an NVIDIA GPU: all tests with the GPU required, the operations again under compute-sanitizer, then
# the benches that use a GPU, into benches/record/. Downloads nothing: Rust, the crates in cargo's cache, the driver and
# NVRTC (a CUDA toolkit, or `pip install nvidia-cuda-nvrtc`) must be there; compute-sanitizer is used where it is.
set -euo pipefail
cd "$(dirname "$0")/.."
export ARCFACE_CU_REQUIRE_GPU=1 ARCFACE_CU_REQUIRE_NVRTC=1 CARGO_NET_OFFLINE=true

step() { printf '\n== %s\n' "$*"; "$@"; }

# What fails is remembered, and what comes after is run all the same: it is then that the sanitizer is wanted.
failed=()
step cargo run --release --quiet -- info
step cargo test --release --workspace --no-fail-fast || failed+=("the tests")

sanitizer=$(command -v compute-sanitizer || ls "${CUDA_PATH:-/usr/local/cuda}"/bin/compute-sanitizer 2>/dev/null || true)
if [[ -n $sanitizer ]]; then
    host=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    for tool in memcheck racecheck; do
        printf '\n== compute-sanitizer %s\n' "$tool"
        # One test at a time: the sanitizer serialises launches anyway, and its reports stay apart.
        env "CARGO_TARGET_${host}_RUNNER=$sanitizer --tool $tool --error-exitcode 1" \
            cargo test --release --no-fail-fast --test device -- on_gpu --skip golden --skip gradients --skip fold --test-threads 1 || failed+=("$tool")
    done
else
    printf '\n!! compute-sanitizer is not here: memcheck and racecheck were NOT run\n' >&2
fi

card=$(nvidia-smi --id=0 --query-gpu=name --format=csv,noheader)
base=benches/record/$(date +%F)-$(tr 'A-Z ' 'a-z-' <<<"$card")
# An earlier record of this day and card stays.
record=$base.md
for ((n = 2; ; n++)); do
    [[ -e $record ]] || break
    record=$base-$n.md
done
errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
{
    printf '# %s, %s\n\n```text\n' "$card" "$(date +%F)"
    nvidia-smi --id=0 --query-gpu=name,driver_version,clocks.sm,clocks.mem,power.limit --format=csv
    cargo run --release --quiet -- info
    git log -1 --format='commit %h, %s'
    rustc --version
    printf '```\n'
} >"$record"
benches=$(grep -l 'Gpu\b' benches/*.rs || true)
[[ -n $benches ]] || printf '\n!! no bench uses the GPU yet: nothing was measured\n' >&2
for file in $benches; do
    name=$(basename "$file" .rs)
    printf '\n== cargo bench --bench %s\n' "$name"
    {
        printf '\n`cargo bench --bench %s`\n\n```text\n' "$name"
        # What cargo says is no part of the record, but the reason where a bench fails.
        cargo bench --bench "$name" 2>"$errors" || { cat "$errors" >&2; exit 1; }
        printf '```\n'
    } | tee -a "$record"
done
printf '\nrecorded in %s\n' "$record"
if ((${#failed[@]})); then
    printf '!! failed: %s\n' "${failed[*]}" >&2
    exit 1
fi
