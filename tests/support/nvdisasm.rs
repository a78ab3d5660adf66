//! NVIDIA's disassembler: the machine code that the kernels become.

use super::{required, skip};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The environment variable that names the program.
const VARIABLE: &str = "ARCFACE_CU_NVDISASM";

/// nvdisasm, from the package `nvidia-cuda-nvdisasm` or a toolkit.
pub(crate) struct Disassembler(PathBuf);

impl Disassembler {
    /// The program that the environment names, else the one that `tests/run.sh` installs. Without it, what needs it is
    /// reported and counted as skipped, or fails if `ARCFACE_CU_REQUIRE_NVDISASM=1`.
    pub(crate) fn or_skip(test: &str) -> Option<Self> {
        let named = std::env::var_os(VARIABLE).filter(|value| !value.is_empty());
        let installed = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/target/nvdisasm/nvidia/cu13/bin/nvdisasm"
        );
        let path = named.map_or_else(|| installed.into(), PathBuf::from);
        if path.is_file() {
            return Some(Disassembler(path));
        }
        let why = "nvdisasm, which shows the kernels' machine code, is not here";
        assert!(!required("ARCFACE_CU_REQUIRE_NVDISASM"), "{why}");
        skip(test, why);
        None
    }

    /// The instructions of each kernel of a cubin, without predicates and operands: (kernel, `LDS.128`, ...).
    pub(crate) fn kernels(&self, cubin: &[u8]) -> Vec<(String, Vec<String>)> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(cubin).expect("a temporary file");
        let output = self.disassemble(file.path());
        let mut kernels: Vec<(String, Vec<String>)> = Vec::new();
        for line in output.lines() {
            if let Some(name) = line
                .strip_prefix(".text.")
                .and_then(|l| l.strip_suffix(':'))
            {
                kernels.push((name.to_owned(), Vec::new()));
            }
            if let (Some((_, instructions)), Some(name)) = (kernels.last_mut(), instruction(line)) {
                instructions.push(name.to_owned());
            }
        }
        kernels
    }

    fn disassemble(&self, file: &Path) -> String {
        let output = Command::new(&self.0).arg("--print-code").arg(file).output();
        let output = output.expect("nvdisasm runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "nvdisasm: {said}");
        String::from_utf8(output.stdout).expect("a disassembly is text")
    }
}

/// The name in a line such as `        /*0110*/              @!P0 MUFU.RCP R6, R6 ;`.
fn instruction(line: &str) -> Option<&str> {
    let (_, code) = line.trim_start().strip_prefix("/*")?.split_once("*/")?;
    let mut words = code.split_whitespace();
    let first = words.next()?;
    let name = if first.starts_with('@') {
        words.next()?
    } else {
        first
    };
    name.starts_with(|c: char| c.is_ascii_uppercase())
        .then_some(name)
}
