#!/usr/bin/env bash
# The one test command: format, lints, documentation, all tests; what was skipped and why; one closing line.
# Needs Rust and a C compiler (for the codecs of bcolz arrays), and Python's pip for the compiler of the CUDA kernels and
# their disassembler, which are installed into target/. Without them the tests that need them are skipped, or fail where
# ARCFACE_CU_REQUIRE_NVRTC=1 and ARCFACE_CU_REQUIRE_NVDISASM=1. ARCFACE_CU_NVRTC and ARCFACE_CU_NVDISASM name others.
# Without a GPU, the tests that need one run on the software card.
set -euo pipefail
cd "$(dirname "$0")/.."
# Everything lies in target/, the software card too.
unset CARGO_TARGET_DIR
mkdir -p target
log=target/test.log
kernels=target/kernel-resources.txt
nvrtc=13.0.88
nvdisasm=13.5.37

step() { printf '\n== %s\n' "$*"; "$@"; }

if [[ -z ${ARCFACE_CU_NVRTC:-} ]]; then
    export ARCFACE_CU_NVRTC=$PWD/target/nvrtc
    if [[ ! -d target/nvrtc/nvidia_cuda_nvrtc-$nvrtc.dist-info ]]; then
        rm -rf target/nvrtc
        step python3 -m pip install --quiet --no-deps --target target/nvrtc "nvidia-cuda-nvrtc==$nvrtc" ||
            printf '\n!! NVRTC %s could not be installed: no kernel is compiled or run\n' "$nvrtc" >&2
    fi
fi

if [[ -z ${ARCFACE_CU_NVDISASM:-} && ! -d target/nvdisasm/nvidia_cuda_nvdisasm-$nvdisasm.dist-info ]]; then
    rm -rf target/nvdisasm
    step python3 -m pip install --quiet --no-deps --target target/nvdisasm "nvidia-cuda-nvdisasm==$nvdisasm" ||
        printf '\n!! nvdisasm %s could not be installed: no kernel is disassembled\n' "$nvdisasm" >&2
fi

step cargo fmt --all --check
step cargo clippy --release --workspace --all-targets -- --deny warnings
RUSTDOCFLAGS="--deny warnings" step cargo doc --release --workspace --no-deps
rm -f "$kernels"
failed=0
# What failed beside tests.
steps=()
step bash tests/software-card.sh
# Without a GPU, the tests that need one run later, on the software card.
on_gpu=()
nvidia-smi -L &>/dev/null || on_gpu=(--skip on_gpu)
step cargo test --release --workspace --no-fail-fast -- "${on_gpu[@]}" 2>&1 | tee "$log" || failed=1
# The CPU's operations with narrower instructions than the machine's.
sets=(baseline avx2)
! grep -q avx512_bf16 /proc/cpuinfo || sets+=(avx512)
for set in "${sets[@]}"; do
    step env ARCFACE_CU_SIMD="$set" cargo test --release --no-fail-fast --test device -- \
        ops_{conv,depthwise,elementwise,head,sgd}::on_cpu 2>&1 | tee -a "$log" || failed=1
done
# If no kernel was compiled, NVRTC is missing, and nothing can run on the card.
if [[ -e $kernels ]]; then
    on_card=(env LD_LIBRARY_PATH="$PWD/target/software-card" ARCFACE_CU_ARCH=compute_80 ARCFACE_CU_REQUIRE_GPU=1)
    step "${on_card[@]}" cargo test --release --no-fail-fast --test device on_gpu 2>&1 | tee -a "$log" || failed=1
    # The parcel for a machine with a card, and its script in the short form, without NVRTC.
    step bash tests/gpu.sh --pack target/gpu-kit --model 0 || { failed=1; steps+=("the parcel"); }
    step "${on_card[@]}" ARCFACE_CU_NVRTC=/nowhere target/gpu-kit/run.sh --short || { failed=1; steps+=("its script"); }
elif ((${#on_gpu[@]})); then
    echo 'SKIPPED on_gpu: no kernel was compiled, so nothing ran on the software card' | tee -a "$log"
fi
if [[ ! -e $kernels && ${ARCFACE_CU_REQUIRE_NVRTC:-} == 1 ]]; then
    failed=1
    steps+=("compiling the kernels")
fi
((${#steps[@]} == 0)) || printf '\n!! failed: %s\n' "${steps[*]}"

printf '\n== Kernels\n'
cat "$kernels" 2>/dev/null || echo "not compiled"
printf '\n== Skipped\n'
# By reason: a test on the GPU is skipped for each operation.
{ grep -o 'SKIPPED .*' "$log" || true; } | sed -E 's/^SKIPPED [^ ]+: //' | sort | uniq -c | sort -rn
awk -v steps=${#steps[@]} '
    /SKIPPED / { skipped++ }
    /^test result:/ {
        for (i = 1; i <= NF; i++) {
            if ($(i + 1) ~ /^passed/) passed += $i
            if ($(i + 1) ~ /^failed/) failed += $i
            if ($(i + 1) ~ /^ignored/) ignored += $i
        }
    }
    END {
        # A test that skips itself counts as passed above.
        printf "\n%d passed, %d failed, %d skipped\n", passed - skipped, failed + steps, ignored + skipped
    }' "$log"
exit "$failed"
