//! The compiler of the kernels: NVRTC, found at run time and called through its C interface.
//!
//! The sources need no header of CUDA: `kernels/*.cuh` are handed over in memory. They are embedded in the binary;
//! [`Sources::VARIABLE`] names a folder to read them from instead, so that a change of a kernel needs no build. A cubin is made for the device's own
//! architecture, since a driver refuses PTX that is newer than itself. PTX is made only if [`Architecture::VARIABLE`]
//! asks for it, and for the tests' interpreter.
//!
//! The library is opened by path and kept by the value that opened it: there is no global state, two versions can be
//! open at once, and its absence is an error like any other.

mod architecture;
mod cache;
mod compiler;
mod elf;
mod find;
mod prebuilt;
mod sources;

pub use architecture::Architecture;
use architecture::driver_loads;
pub use cache::Cache;
pub use compiler::Compiler;
pub use find::Search;
pub use prebuilt::Prebuilt;
pub use sources::Sources;

use super::tiles::Program;
use crate::base::text::shown;
use crate::{Error, Result};
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr::null_mut;

/// The options of all programs, besides the architecture and their constants.
const OPTIONS: [&str; 4] = [
    "--std=c++17",
    "-default-device",
    "-lineinfo",
    // Products and sums are fused, but nothing else of fast math: divisions and roots are rounded correctly.
    "--fmad=true",
];

/// The oldest and the newest major version that these calls are known to work with.
const VERSIONS: std::ops::RangeInclusive<u32> = 12..=13;

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// A cubin for an architecture `sm_*`, the text of PTX for `compute_*`.
    pub image: Vec<u8>,
    /// What the compiler said; for `sm_*` with the resources of each kernel.
    pub log: String,
}

/// What a kernel needs of a multiprocessor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// The kernel.
    pub kernel: String,
    /// Registers per thread.
    pub registers: u32,
    /// Bytes of static shared memory per block.
    pub shared: u32,
    /// Bytes of local memory per thread: arrays that did not fit in registers.
    pub stack: u32,
    /// Bytes of spilled registers, stores and loads together.
    pub spills: u32,
}

impl Compiled {
    /// The resources of each kernel, by the assembler's report.
    pub fn resources(&self) -> Vec<Resources> {
        let mut kernels: Vec<Resources> = Vec::new();
        for line in self.log.lines() {
            if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
                kernels.push(Resources {
                    kernel,
                    ..Resources::default()
                });
            }
            let Some(kernel) = kernels.last_mut() else {
                continue;
            };
            // "40 registers", "3072 bytes smem", "0 bytes stack frame": the number stands before its unit.
            let before = |unit: &str| -> Option<u32> {
                let (text, _) = line.split_once(unit)?;
                text.rsplit(' ').next()?.parse().ok()
            };
            if let Some(n) = before(" registers") {
                kernel.registers = n;
                kernel.shared = before(" bytes smem").unwrap_or(0);
            }
            if let Some(n) = before(" bytes stack frame") {
                kernel.stack = n;
            }
            let spills = [" bytes spill stores", " bytes spill loads"].map(before);
            kernel.spills += spills.into_iter().flatten().sum::<u32>();
        }
        kernels
    }
}

/// A program's text and everything else that determines the compiled code, except architecture and compiler.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
    headers: Vec<(&'a str, &'a str)>,
    options: Vec<String>,
}

impl<'a> Source<'a> {
    fn of(program: &Program, sources: &'a Sources) -> Result<Self> {
        let text = sources.text(program.file).ok_or_else(|| {
            Error::Device(format!(
                "{}: kernels/ has no file {}",
                program.name, program.file
            ))
        })?;
        let defines = (program.defines()).map(|(name, value)| format!("-D{name}={value}"));
        Ok(Source {
            file: program.file,
            text,
            headers: sources.headers().collect(),
            options: (OPTIONS.iter().map(|option| (*option).to_owned()))
                .chain(defines)
                .collect(),
        })
    }
}

/// `nvrtcResult`; 0 is success.
type Status = c_int;
/// `nvrtcProgram`.
type Handle = *mut c_void;
/// `nvrtcResult nvrtcGet...Size(nvrtcProgram, size_t*)`.
type Size = unsafe extern "C" fn(Handle, *mut usize) -> Status;
/// `nvrtcResult nvrtcGet...(nvrtcProgram, char*)`.
type Read = unsafe extern "C" fn(Handle, *mut c_char) -> Status;

/// The functions that are called.
struct Api {
    error_string: unsafe extern "C" fn(Status) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Handle,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Handle) -> Status,
    compile: unsafe extern "C" fn(Handle, c_int, *const *const c_char) -> Status,
    log: (Size, Read),
    ptx: (Size, Read),
    cubin: (Size, Read),
    archs: (
        unsafe extern "C" fn(*mut c_int) -> Status,
        unsafe extern "C" fn(*mut c_int) -> Status,
    ),
}

/// NVRTC, loaded.
pub struct Nvrtc {
    api: Api,
    path: PathBuf,
    version: (u32, u32),
    /// The library and its builtins; they stay loaded for as long as their functions may be called.
    _libraries: Vec<Library>,
}

impl std::fmt::Debug for Nvrtc {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NVRTC {:?} at {}", self.version, shown(&self.path))
    }
}

/// One function of a library.
///
/// # Safety
/// `T` must be the type of the function pointer that the C header declares.
unsafe fn function<T: Copy>(library: &Library, name: &CStr) -> Result<T, String> {
    // SAFETY: the caller vouches for the type.
    let symbol = unsafe { library.get::<T>(name) };
    symbol.map(|f| *f).map_err(|_| {
        let name = name.to_string_lossy();
        format!("has no function {name}")
    })
}

impl Nvrtc {
    /// Opens the first NVRTC that can be used. Given a driver's CUDA version, the driver must load its code; given an
    /// architecture, it must compile for it.
    ///
    /// # Errors
    /// None was found. The message says where it looked, what was wrong with each one found, and what to install.
    pub fn open(
        search: &Search,
        driver: Option<(u32, u32)>,
        architecture: Option<&Architecture>,
    ) -> Result<Self> {
        let newest = driver.map(|(major, _)| major);
        let mut refused = Vec::new();
        for path in search.libraries() {
            let suits = |nvrtc: &Self| match architecture {
                Some(architecture) => nvrtc.check_architecture(architecture.name()),
                None => Ok(()),
            };
            match Self::load(
                &path,
                driver,
                architecture.is_some_and(Architecture::is_ptx),
            ) {
                Ok(Some(nvrtc)) => match suits(&nvrtc) {
                    Ok(()) => return Ok(nvrtc),
                    Err(why) => refused.push(format!("{}: {why}", shown(&nvrtc.path))),
                },
                Ok(None) => {}
                Err(why) => refused.push(format!("{} {why}", shown(path))),
            }
        }
        let package = match newest {
            Some(12) => "nvidia-cuda-nvrtc-cu12",
            _ => "nvidia-cuda-nvrtc",
        };
        Err(Error::Device(format!(
            "NVRTC, which compiles the kernels, was not found: looked {search}{}{}. Install it with `pip install {package}`, or set {} to the library or its folder",
            if refused.is_empty() { "" } else { "; " },
            refused.join("; "),
            find::VARIABLE
        )))
    }

    /// Loads one library; None where a name is not on the dynamic linker's path.
    fn load(path: &Path, driver: Option<(u32, u32)>, ptx: bool) -> Result<Option<Self>, String> {
        let named = path.components().count() == 1;
        // SAFETY: NVRTC's initialisation has no preconditions. The user decides which file is loaded, as with any
        // program that they start.
        let library = match unsafe { Library::new(path) } {
            Ok(library) => library,
            Err(_) if named => return Ok(None),
            Err(error) => {
                // The linker's own words, where libloading has them.
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                let cause = cause.unwrap_or_else(|| error.to_string());
                return Err(format!("cannot be loaded ({cause})"));
            }
        };
        let (mut major, mut minor) = (0, 0);
        // SAFETY: `nvrtcResult nvrtcVersion(int*, int*)`, with two integers that outlive the call.
        let status = unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status =
                function(&library, c"nvrtcVersion")?;
            version(&mut major, &mut minor)
        };
        if status != 0 {
            return Err(format!("does not tell its version (status {status})"));
        }
        let version = (major as u32, minor as u32);
        if !VERSIONS.contains(&version.0) {
            return Err(format!(
                "is version {major}.{minor}, and versions {} and {} are known",
                VERSIONS.start(),
                VERSIONS.end()
            ));
        }
        if driver.is_some_and(|driver| !driver_loads(driver, version, ptx)) {
            return Err(format!(
                "is version {major}.{minor}, which is newer than the driver: its code would not load"
            ));
        }
        let path = if named {
            find::loaded(path).unwrap_or_else(|| path.to_owned())
        } else {
            path.to_owned()
        };
        // NVRTC opens its builtins by name; what is loaded already is found even where no search path leads to it.
        let builtins = path.with_file_name(format!("libnvrtc-builtins.so.{major}.{minor}"));
        // SAFETY: a library without initialisation of its own. It need not be here: it may be on the linker's path.
        let builtins = unsafe { Library::new(builtins) }.ok();
        // SAFETY: each type is that of nvrtc.h, the same in versions 12 and 13.
        let api = unsafe {
            Api {
                error_string: function(&library, c"nvrtcGetErrorString")?,
                create: function(&library, c"nvrtcCreateProgram")?,
                destroy: function(&library, c"nvrtcDestroyProgram")?,
                compile: function(&library, c"nvrtcCompileProgram")?,
                log: (
                    function(&library, c"nvrtcGetProgramLogSize")?,
                    function(&library, c"nvrtcGetProgramLog")?,
                ),
                ptx: (
                    function(&library, c"nvrtcGetPTXSize")?,
                    function(&library, c"nvrtcGetPTX")?,
                ),
                cubin: (
                    function(&library, c"nvrtcGetCUBINSize")?,
                    function(&library, c"nvrtcGetCUBIN")?,
                ),
                archs: (
                    function(&library, c"nvrtcGetNumSupportedArchs")?,
                    function(&library, c"nvrtcGetSupportedArchs")?,
                ),
            }
        };
        Ok(Some(Nvrtc {
            api,
            path,
            version,
            _libraries: builtins.into_iter().chain([library]).collect(),
        }))
    }

    /// Where the library lies; its bare name where the system does not tell.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its version: (13, 0).
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    /// Compiles for an architecture: `sm_*` to a cubin, `compute_*` to PTX.
    ///
    /// # Errors
    /// An architecture that this NVRTC does not know, or what is wrong with the source, line by line.
    fn compile(&self, source: &Source, architecture: &str) -> Result<Compiled> {
        let problem = |what: String| {
            let (major, minor) = self.version;
            Error::Device(format!(
                "kernels/{} for {architecture}, NVRTC {major}.{minor}: {what}",
                source.file
            ))
        };
        self.check_architecture(architecture).map_err(&problem)?;
        let cubin = architecture.starts_with("sm_");
        let c = |text: &str| CString::new(text).map_err(|_| problem("a zero byte".to_owned()));
        let all = |texts: &mut dyn Iterator<Item = &str>| texts.map(c).collect::<Result<Vec<_>>>();
        let (text, file) = (c(source.text)?, c(source.file)?);
        let names = all(&mut source.headers.iter().map(|(name, _)| *name))?;
        let texts = all(&mut source.headers.iter().map(|(_, text)| *text))?;
        let architecture = format!("--gpu-architecture={architecture}");
        let report = cubin.then_some("--ptxas-options=-v");
        let options = all(&mut (source.options.iter().map(String::as_str))
            .chain([architecture.as_str()])
            .chain(report))?;

        let program = Unit::new(&self.api, &text, &file, &names, &texts).map_err(&problem)?;
        let options = pointers(&options);
        // SAFETY: the program is alive, and so are the options' strings.
        let status =
            unsafe { (self.api.compile)(program.handle, options.len() as c_int, options.as_ptr()) };
        let log = program.read("the log", self.api.log).map_err(&problem)?;
        let log = text_of(&log);
        if status != 0 {
            let said = self.api.describe(status);
            return Err(problem(format!("{said}\n{}", log.trim_end())));
        }
        let image = if cubin {
            program.read("the cubin", self.api.cubin)
        } else {
            // Its size counts the zero byte at the end.
            (program.read("the PTX", self.api.ptx)).map(|text| text_of(&text).into_bytes())
        };
        Ok(Compiled {
            image: image.map_err(&problem)?,
            log,
        })
    }

    /// Refuses what this version does not know, where it would only name the option.
    fn check_architecture(&self, architecture: &str) -> Result<(), String> {
        let mut count = 0;
        // SAFETY: one integer that outlives the call.
        let mut status = unsafe { (self.api.archs.0)(&mut count) };
        let mut known = vec![0; count.max(0) as usize];
        if status == 0 {
            // SAFETY: room for as many integers as the call before said.
            status = unsafe { (self.api.archs.1)(known.as_mut_ptr()) };
        }
        if status != 0 {
            return Err(self.api.describe(status));
        }
        let digits = |c: char| c.is_ascii_digit();
        let number = architecture
            .split_once('_')
            .map_or("", |(_, number)| number);
        let number = number.trim_end_matches(|c| !digits(c)).parse::<c_int>();
        match number {
            Ok(number) if known.contains(&number) => Ok(()),
            _ => Err(format!(
                "this version compiles only for {known:?}; a newer card needs a newer NVRTC and perhaps a newer driver, or {}=compute_{}, PTX that the driver compiles itself",
                Architecture::VARIABLE,
                known.iter().max().unwrap_or(&80)
            )),
        }
    }
}

impl Api {
    /// What a status means.
    fn describe(&self, status: Status) -> String {
        // SAFETY: any integer may be asked for.
        let text = unsafe { (self.error_string)(status) };
        if text.is_null() {
            return format!("status {status}");
        }
        // SAFETY: a string constant of the library, which is loaded for as long as `self` lives.
        unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned()
    }
}

/// A program of NVRTC's, destroyed when dropped.
struct Unit<'a> {
    api: &'a Api,
    handle: Handle,
}

impl<'a> Unit<'a> {
    fn new(
        api: &'a Api,
        text: &CStr,
        file: &CStr,
        names: &[CString],
        texts: &[CString],
    ) -> Result<Self, String> {
        let mut handle = null_mut();
        let (names, texts) = (pointers(names), pointers(texts));
        // SAFETY: all strings outlive the call, which copies them; the two lists have the length that is passed.
        let status = unsafe {
            (api.create)(
                &mut handle,
                text.as_ptr(),
                file.as_ptr(),
                names.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        if status != 0 {
            return Err(api.describe(status));
        }
        Ok(Unit { api, handle })
    }

    /// One of the things a program has to give, as bytes.
    fn read(&self, what: &str, (size, read): (Size, Read)) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: the program is alive, and the size outlives the call.
        let mut status = unsafe { size(self.handle, &mut len) };
        let mut bytes = vec![0u8; len];
        if status == 0 && len > 0 {
            // SAFETY: room for as many bytes as the call before said.
            status = unsafe { read(self.handle, bytes.as_mut_ptr().cast()) };
        }
        match status {
            0 => Ok(bytes),
            _ => Err(format!("{what}: {}", self.api.describe(status))),
        }
    }
}

impl Drop for Unit<'_> {
    fn drop(&mut self) {
        // SAFETY: made by `create`, and destroyed only here.
        unsafe { (self.api.destroy)(&mut self.handle) };
    }
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).collect()
}

/// Text up to its zero byte.
fn text_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_read_kernel_by_kernel() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'add_dgrad' for 'sm_80'
ptxas info    : Function properties for add_dgrad
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 27 registers, used 0 barriers, 16 bytes cumulative stack size, 400 bytes cmem[0]
ptxas info    : Compile time = 7.759 ms
ptxas info    : Compiling entry function 'close_grad' for 'sm_90a'
ptxas info    : Function properties for close_grad
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 3072 bytes smem
";
        let compiled = Compiled {
            image: Vec::new(),
            log: log.to_owned(),
        };
        let expected = [("add_dgrad", 27, 0, 16, 20), ("close_grad", 40, 3072, 0, 0)];
        let expected = expected.map(|(kernel, registers, shared, stack, spills)| Resources {
            kernel: kernel.to_owned(),
            registers,
            shared,
            stack,
            spills,
        });
        assert_eq!(compiled.resources(), expected);
    }
}
