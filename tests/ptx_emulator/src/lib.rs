//! Runs the PTX that NVRTC emits on the CPU, checked and counted.
