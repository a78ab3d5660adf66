#!/usr/bin/env bash
# The long form of the tests of faults: every call of every command fails once, a kill at every call, a thousand kills at
# random moments (tests/faults/main.rs). It takes half an hour on two cores. The last lines are figures for
# benches/record/.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p target
export ARCFACE_CU_FAULTS_LONG=1
failed=0
cargo test --release --test faults -- --nocapture 2>&1 | tee target/faults.log || failed=1
printf '\n== Figures\n'
grep -aE '^(failing calls|kills at calls|kills at random|two at once|synced before named): ' target/faults.log
exit "$failed"
