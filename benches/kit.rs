//! The benches that are carried to a machine with a GPU (`tests/gpu.sh --pack`), in one program: its first argument is the
//! bench's name, the others are the bench's own. One program, because the engine is most of each bench.

// Each bench is also a program of its own, with the same modules.
#![allow(clippy::duplicate_mod)]

#[path = "head.rs"]
mod head;
#[path = "kernels.rs"]
mod kernels;
#[path = "train_step.rs"]
mod train_step;

fn main() {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("head") => head::run(args),
        Some("kernels") => kernels::run(args),
        Some("train_step") => train_step::run(args),
        _ => println!("bench head|kernels|train_step [OPTION]..."),
    }
}
