//! Loads PTX files and prints what their kernels need.

fn main() {
    for path in std::env::args().skip(1) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                println!("{path}: {error}");
                continue;
            }
        };
        match ptx_emulator::Machine::new(ptx_emulator::Options::default()).load(&text) {
            Ok(module) => {
                for kernel in module.kernels() {
                    println!(
                        "{path}: {} declares {} registers, {:?} rows live, {} B shared, {} B local",
                        kernel.name,
                        kernel.declared_registers,
                        kernel.live_rows,
                        kernel.shared_bytes,
                        kernel.local_bytes
                    );
                }
            }
            Err(error) => println!("{path}: {error}"),
        }
    }
}
