#!/usr/bin/env bash
# Builds the GPU in software into target/software-card/. Every command of the program runs on it:
#   bash tests/software-card.sh
#   LD_LIBRARY_PATH=target/software-card ARCFACE_CU_ARCH=compute_80 target/release/arcface-cu info
# tests/software_card/src/lib.rs says what it does and how to request failures.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
cargo build --release --package software_card
mkdir -p "$target/software-card"
# Replace the whole file: a process may have the old one loaded.
cp "$target/release/libsoftware_card.so" "$target/software-card/libcuda.so.1.new"
mv "$target/software-card/libcuda.so.1.new" "$target/software-card/libcuda.so.1"
# This name is tried first, so the software card is found before a real driver.
ln -sf libcuda.so.1 "$target/software-card/libcuda.so"
