//! The `arcface-cu` program: everything is in the library's `cli`.

fn main() -> std::process::ExitCode {
    arcface_cu::cli::main()
}
