//! What the machine offers: instruction sets, threads, memory.

use crate::base::text::shown;
use crate::{Error, Result};
use std::error::Error as _;
use std::path::Path;
use std::str::FromStr;
use std::sync::OnceLock;

/// Vector instructions that the kernels use, each set beyond the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Instructions {
    /// Those of every machine of the architecture.
    Baseline,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 with its subsets F, BW, CD, DQ and VL.
    Avx512,
    /// AVX-512 with products of pairs of bfloat16.
    Avx512Bf16,
}

impl Instructions {
    /// The environment variable by which the command line and the tests keep to narrower instructions.
    pub const VARIABLE: &str = "ARCFACE_CU_SIMD";

    /// Keeps the kernels to `self` where the machine has more, for the whole process. The first call counts, and only
    /// before the first operation.
    pub fn keep_to(self) {
        LIMIT.get_or_init(|| self);
    }
}

impl FromStr for Instructions {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "baseline" => Ok(Instructions::Baseline),
            "avx2" => Ok(Instructions::Avx2),
            "avx512" => Ok(Instructions::Avx512),
            "avx512-bf16" => Ok(Instructions::Avx512Bf16),
            other => Err(Error::Usage(format!(
                "{}={}: expected baseline, avx2, avx512 or avx512-bf16",
                Instructions::VARIABLE,
                shown(other)
            ))),
        }
    }
}

/// See [`Instructions::keep_to`].
static LIMIT: OnceLock<Instructions> = OnceLock::new();

/// The instruction set that pulp's kernels are compiled for here.
#[inline(always)]
pub(super) fn arch() -> pulp::Arch {
    #[cfg(target_arch = "x86_64")]
    if let Some(limit) = LIMIT.get() {
        return limited(*limit);
    }
    pulp::Arch::new()
}

#[cfg(target_arch = "x86_64")]
#[cold]
fn limited(limit: Instructions) -> pulp::Arch {
    match (pulp::Arch::new(), limit) {
        (_, Instructions::Baseline) => pulp::Arch::Scalar,
        (pulp::Arch::V4(wide), Instructions::Avx2) => pulp::Arch::V3(*wide),
        (arch, _) => arch,
    }
}

/// Permission for AVX and AVX2, where the machine has them.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn avx() -> Option<pulp::x86::V3> {
    match arch() {
        pulp::Arch::V4(simd) => Some(*simd),
        pulp::Arch::V3(simd) => Some(simd),
        _ => None,
    }
}

/// Permission for AVX512_BF16, where the machine has it.
#[cfg(target_arch = "x86_64")]
#[inline]
pub(super) fn pairs() -> Option<pulp::x86::V4> {
    static FOUND: OnceLock<Option<pulp::x86::V4>> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let limit = LIMIT.get().copied().unwrap_or(Instructions::Avx512Bf16);
        match arch() {
            pulp::Arch::V4(simd)
                if limit == Instructions::Avx512Bf16
                    && std::arch::is_x86_feature_detected!("avx512bf16") =>
            {
                Some(simd)
            }
            _ => None,
        }
    })
}

/// Whether the machine multiplies pairs of bfloat16.
pub(super) fn multiplies_pairs() -> bool {
    #[cfg(target_arch = "x86_64")]
    return pairs().is_some();
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Runs `f` compiled for the widest instruction set of this machine. `f` must be a closure whose loops are in its
/// own body or in `#[inline(always)]` functions.
#[inline(always)]
pub(super) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    arch().dispatch(f)
}

/// Starts the threads of this process for arithmetic; 0: as many as `RAYON_NUM_THREADS` says, or one per core. The calling
/// thread is one of them, so an operation that it calls starts at once, where threads of the pool would have to wake up
/// for each. Without this call Rayon starts its threads at their first use, and panics if the system refuses.
///
/// # Errors
/// If the system refuses. Where they run already they are kept.
pub fn start_threads(threads: usize) -> Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    match pool.use_current_thread().build_global() {
        Err(error) if error.source().is_some() => Err(Error::Invalid(format!(
            "starting the threads for arithmetic: {error}; a higher `ulimit -u` or a smaller --threads or RAYON_NUM_THREADS may help"
        ))),
        _ => Ok(()),
    }
}

/// The processor's name, the vector instructions that the kernels use on it, and the threads.
pub(super) fn describe() -> String {
    let threads = rayon::current_num_threads();
    format!(
        "cpu: {}, {}, {threads} thread{}",
        model_name().unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        features(),
        if threads == 1 { "" } else { "s" }
    )
}

/// The processor's name, where the system tells it.
fn model_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    let name = line.split_once(':')?.1.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// The widest vector instructions that the kernels use here.
fn features() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    match arch() {
        pulp::Arch::V4(_) if multiplies_pairs() => return "AVX-512 with BF16",
        pulp::Arch::V4(_) => return "AVX-512",
        pulp::Arch::V3(_) => return "AVX2 and FMA",
        _ => {}
    }
    #[cfg(target_arch = "aarch64")]
    if !matches!(arch(), pulp::Arch::Scalar) {
        return "NEON";
    }
    "no vector instructions beyond the baseline"
}

/// Bytes that can still be allocated: what the system calls available, or what the process's control group has
/// left, whichever is less. `u64::MAX` where the system tells neither.
pub(super) fn memory_available() -> u64 {
    let system = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| available_in(&text))
        .unwrap_or(u64::MAX);
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    system.min(left_in_groups(&groups, Path::new("/sys/fs/cgroup")))
}

/// MemAvailable of /proc/meminfo, in bytes.
fn available_in(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// The least that is left in any of the process's memory control groups and the groups around them (version 2:
/// `memory.max`, version 1: `memory.limit_in_bytes`).
fn left_in_groups(groups: &str, root: &Path) -> u64 {
    let mut least = u64::MAX;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (base, limit, used) = if controllers.is_empty() {
            (root.to_owned(), "memory.max", "memory.current")
        } else if controllers.split(',').any(|c| c == "memory") {
            let base = root.join("memory");
            (base, "memory.limit_in_bytes", "memory.usage_in_bytes")
        } else {
            continue;
        };
        // In a container the path may not exist under the mounted root, whose own files are then the limit.
        let folder = base.join(path.trim_start_matches('/'));
        for folder in folder.ancestors().take_while(|f| f.starts_with(&base)) {
            let number = |name: &str| -> Option<u64> {
                let text = std::fs::read_to_string(folder.join(name)).ok()?;
                text.trim().parse().ok()
            };
            if let (Some(limit), Some(used)) = (number(limit), number(used)) {
                least = least.min(limit.saturating_sub(used));
            }
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_from_meminfo() {
        let text = "MemTotal:       16384000 kB\nMemAvailable:    1024 kB\n";
        assert_eq!(available_in(text), Some(1 << 20));
        assert_eq!(available_in("MemTotal: 1 kB\n"), None);
        assert_eq!(available_in("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn the_tightest_control_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |folder: &str, files: [(&str, &str); 2]| {
            let folder = root.path().join(folder);
            std::fs::create_dir_all(&folder).unwrap();
            for (name, text) in files {
                std::fs::write(folder.join(name), text).unwrap();
            }
        };
        write("a", [("memory.max", "1000\n"), ("memory.current", "300\n")]);
        write("a/b", [("memory.max", "max\n"), ("memory.current", "10\n")]);
        assert_eq!(left_in_groups("0::/a/b\n", root.path()), 700);
        assert_eq!(left_in_groups("0::/elsewhere\n", root.path()), u64::MAX);
        write(
            "memory",
            [
                ("memory.limit_in_bytes", "500"),
                ("memory.usage_in_bytes", "600"),
            ],
        );
        let groups = "5:cpu:/\n4:cpuset,memory:/c\n0::/a/b\nnonsense\n";
        assert_eq!(left_in_groups(groups, root.path()), 0);
    }

    #[test]
    fn this_machine_describes_itself() {
        assert!(describe().starts_with("cpu: "));
        assert!(memory_available() > 1 << 20);
    }
}
