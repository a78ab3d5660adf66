#!/usr/bin/env bash
# Feeds every reader mutated files, a minute each (SECONDS_EACH=60), or those that are named: run.sh keras onnx.
# Needs a C++ compiler. A reader that panics, or takes 2 GiB or 20 s for a file, stops it
# with the file in target/fuzz/artifacts/.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${SECONDS_EACH:-60}
work=$PWD/target/fuzz
export CARGO_TARGET_DIR=$work/build
host=$(rustc -vV | sed -n 's/^host: //p')

# libFuzzer's counters without a sanitizer: the readers are safe Rust, and what is looked for are panics, memory and time.
flags=(
    --cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks
    -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
)

mapfile -t targets < <(printf '%s\n' "$@")
if [[ $# -eq 0 ]]; then
    mapfile -t targets < <(cd tests/fuzz/fuzz_targets && ls | sed 's/\.rs$//')
fi

# Whole files to begin with: what other programs wrote, and what this one writes.
seeds=$work/seeds
if [[ ! -d $seeds ]]; then
    made=$work/made
    rm -rf "$made"
    CARGO_TARGET_DIR=target cargo build --release --quiet
    program=target/release/arcface-cu
    for format in recordio seed-tfrecord arcface-tf2-tfrecord; do
        "$program" pack --data generated:2x2 --reserve-last 0 --format "$format" --out "$made/$format" >/dev/null
    done
    golden=tests/reference/golden
    keep() { # TARGET FILE...
        mkdir -p "$seeds.tmp/$1"
        local target=$1 file
        shift
        for file in "$@"; do
            # Large files are mutated slowly.
            [[ -f $file && $(stat -c %s "$file") -le 300000 ]] || continue
            cp "$file" "$seeds.tmp/$target/$(sha256sum "$file" | cut -c1-16)"
        done
    }
    keep recordio "$made"/recordio/*.rec
    keep tfrecord "$made"/*tfrecord/* "$golden"/tfrecord/*
    keep bin "$golden"/bin/*
    keep keras "$golden"/keras/*
    keep torch "$golden"/torch/*
    keep safetensors "$golden"/*.safetensors
    keep onnx tests/reference/onnx/*.onnx
    keep npy tests/reference/onnx/*.npy
    printf '5 5\n0 1 1\n' >"$work/seed.txt"
    keep list "$work/seed.txt"
    printf 'a/0.jpg b/1.jpg 1\n' >"$work/seed.txt"
    keep pairs "$work/seed.txt"
    printf 'a/0.jpg 38 51 73 51 56 71 41 92 70 92\n' >"$work/seed.txt"
    keep landmarks "$work/seed.txt"
    printf '[{"file": "a/0.jpg", "kps": [[38, 51], [73, 51], [56, 71], [41, 92], [70, 92]]}]' >"$work/seed.txt"
    keep landmarks "$work/seed.txt"
    mv "$seeds.tmp" "$seeds"
fi

RUSTFLAGS="${flags[*]}" cargo build --release --manifest-path tests/fuzz/Cargo.toml --target "$host" \
    $(printf -- '--bin %s ' "${targets[@]}")

for target in "${targets[@]}"; do
    printf '\n== %s, %s s\n' "$target" "$seconds"
    corpus=$work/corpus/$target
    mkdir -p "$corpus" "$seeds/$target" "$work/artifacts"
    "$CARGO_TARGET_DIR/$host/release/$target" "$corpus" "$seeds/$target" \
        -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=20 -max_len=400000 \
        -artifact_prefix="$work/artifacts/$target-" -print_final_stats=1 2>&1 |
        grep -aE "^(==|stat::number_of_executed|stat::peak|Done|SUMMARY|thread|error)" || {
        echo "!! $target: see $work/artifacts" >&2
        exit 1
    }
done
