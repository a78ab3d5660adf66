#!/usr/bin/env bash
# For a machine with an NVIDIA GPU.
#
#     tests/gpu.sh --pack DIR [--arch NAME] [--model N]
#
# makes the folder DIR, on any machine that can run tests/run.sh. DIR needs only a GPU and its driver: copy it to a
# machine that has them, and run DIR/run.sh there. It holds the program, all tests that run on a device, the benches,
# the kernels compiled for the architecture (by default sm_90a) and as PTX, and times modelled for an H200 at batch N
# (by default 16, since the emulator is slow; 0: none).
#
#     tests/gpu.sh
#
# on a machine with a GPU and Rust, runs all tests with the GPU required, makes such a folder and runs its run.sh; the
# table goes into benches/record/. It downloads nothing: the crates must be in cargo's cache, and NVRTC in a CUDA
# toolkit or Python package.
set -euo pipefail
cd "$(dirname "$0")/.."

# The most bytes in a parcel: uploads are often limited to 64 MiB.
most=$((60 << 20))

die() { printf 'gpu.sh: %s\n' "$*" >&2; exit 1; }
step() { printf '\n== %s\n' "$*"; "$@"; }

pack() {
    local dir=$1 arch=$2 model=$3 name path
    [[ ! -e $dir || -f $dir/parcel.txt ]] || die "$dir exists already and is not a parcel of this script"
    rm -rf "$dir"
    mkdir -p "$dir"
    dir=$(cd "$dir" && pwd)
    # Build all of them together, as for the tests: other targets may select other features of the dependencies and
    # rebuild everything.
    local built
    built=$(cargo build --release --bin arcface-cu --test device --bench kit --message-format=json-render-diagnostics |
        sed -n 's/.*"target":{[^}]*"name":"\([^"]*\)".*"executable":"\([^"]*\)".*/\1 \2/p')
    while read -r name path; do
        [[ $name == kit ]] && name=bench
        strip --strip-all -o "$dir/$name" "$path"
        # The source folder does not exist on the other machine.
        if grep -qaF "$PWD" "$dir/$name"; then die "$name names a path of this machine: $PWD"; fi
    done <<<"$built"
    for name in arcface-cu device bench; do [[ -x $dir/$name ]] || die "$name was not built"; done
    # Also checks that each file holds every kernel of the launch table, by the file's own symbol table.
    "$dir/arcface-cu" kernels --arch "$arch" --arch compute_80 --out "$dir/kernels"
    if ((model)); then
        "$dir/bench" kernels --emulate --card H200 --batch "$model" --json "$dir/modelled.jsonl" >/dev/null
    fi
    cp tests/gpu_kit/run.sh benches/rivals/pytorch.py tests/reference/insightface.py "$dir"
    {
        git log -1 --format='commit %h of %cs, %s' 2>/dev/null || echo 'commit unknown'
        git diff --quiet HEAD 2>/dev/null || echo 'with changes that are not committed'
        rustc --version
        printf 'kernels for %s and compute_80\n' "$arch"
    } >"$dir/parcel.txt"
    local bytes
    bytes=$(du -sb "$dir" | cut -f 1)
    ((bytes <= most)) || die "$dir has $bytes bytes, and $most are allowed"
    printf '%s: %d MiB\n' "$dir" $(((bytes + (1 << 20) - 1) >> 20))
}

dir='' arch=sm_90a model=16
while (($#)); do
    (($# > 1)) || die "$1 needs a value"
    case $1 in
    --pack) dir=$2 ;;
    --arch) arch=$2 ;;
    --model) model=$2 ;;
    *) die "$1 is not known: tests/gpu.sh [--pack DIR] [--arch NAME] [--model N]" ;;
    esac
    shift 2
done
if [[ -n $dir ]]; then
    pack "$dir" "$arch" "$model"
    exit
fi

export ARCFACE_CU_REQUIRE_GPU=1 ARCFACE_CU_REQUIRE_NVRTC=1 CARGO_NET_OFFLINE=true
# A failed step is recorded, and the next steps still run.
failed=()
step cargo test --release --workspace --no-fail-fast || failed+=("the tests")
kit=target/gpu-kit
step pack "$kit" "$arch" "$model"
step "$kit/run.sh" || failed+=("$kit/run.sh")

card=$(nvidia-smi --id=0 --query-gpu=name --format=csv,noheader)
base=benches/record/$(date +%F)-$(tr 'A-Z ' 'a-z-' <<<"$card")
# An earlier record of this day and card stays.
record=$base.md
for ((n = 2; ; n++)); do
    [[ -e $record ]] || break
    record=$base-$n.md
done
{
    printf '# %s, %s\n\n```text\n' "$card" "$(date +%F)"
    cat "$kit/results/info.txt" "$kit/results/table.txt"
    printf '```\n'
} >"$record"
printf '\nrecorded in %s\n' "$record"
if ((${#failed[@]})); then
    printf '!! failed: %s\n' "${failed[*]}" >&2
    exit 1
fi
