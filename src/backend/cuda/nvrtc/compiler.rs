//! Where a card's programs come from: prebuilt, cached by an earlier run, or compiled.

use super::cache::Key;
use super::{Architecture, Cache, Compiled, Nvrtc, Prebuilt, Search, Source, Sources};
use crate::backend::cuda::tiles::{PROGRAMS, Program};
use crate::{Error, Result};
use rayon::prelude::*;
use std::collections::HashMap;
use std::sync::OnceLock;

/// The programs for a card: prebuilt ones first, then those that NVRTC compiles or has compiled before. NVRTC is opened
/// only when a program is not prebuilt.
#[derive(Debug)]
pub struct Compiler {
    sources: Sources,
    prebuilt: Prebuilt,
    cache: Cache,
    search: Search,
    driver: Option<(u32, u32)>,
    architecture: Option<Architecture>,
    /// NVRTC, or why it cannot be used; set when it is first needed.
    nvrtc: OnceLock<Result<Nvrtc, String>>,
}

impl Compiler {
    /// The programs of these sources: taken from `prebuilt`, or compiled with the NVRTC that [`Nvrtc::open`] finds and
    /// kept in `cache`.
    pub fn new(
        sources: Sources,
        prebuilt: Prebuilt,
        search: Search,
        driver: Option<(u32, u32)>,
        architecture: Option<Architecture>,
        cache: Cache,
    ) -> Self {
        Compiler {
            sources,
            prebuilt,
            cache,
            search,
            driver,
            architecture,
            nvrtc: OnceLock::new(),
        }
    }

    /// NVRTC itself, opened by the first call.
    ///
    /// # Errors
    /// As [`Nvrtc::open`].
    pub fn nvrtc(&self) -> Result<&Nvrtc> {
        let open = || {
            let nvrtc = Nvrtc::open(&self.search, self.driver, self.architecture.as_ref());
            nvrtc.map_err(|error| error.to_string())
        };
        let nvrtc = self.nvrtc.get_or_init(open).as_ref();
        nvrtc.map_err(|why| Error::Device(why.clone()))
    }

    /// The cache.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// The program for `architecture`.
    ///
    /// # Errors
    /// A damaged prebuilt program; no prebuilt one and no NVRTC; an architecture that it does not know; or what is
    /// wrong with the source, line by line.
    pub fn compile(&self, program: &Program, architecture: &str) -> Result<Compiled> {
        let source = Source::of(program, &self.sources)?;
        if self.prebuilt.loads(self.driver, architecture)
            && let Some(compiled) = self.prebuilt.read(program, &source, architecture)?
        {
            return Ok(compiled);
        }
        let nvrtc = self.nvrtc_for(program, architecture)?;
        let key = Key::new(&source, architecture, nvrtc.version());
        let name = format!("{}-{architecture}", program.name);
        if let Some(compiled) = self.cache.read(&name, key) {
            return Ok(compiled);
        }
        let compiled = nvrtc.compile(&source, architecture)?;
        self.cache.write(&name, key, &compiled);
        Ok(compiled)
    }

    /// All programs by name, several compiled at once.
    ///
    /// # Errors
    /// As [`Self::compile`].
    pub fn compile_all(&self, architecture: &str) -> Result<HashMap<&'static str, Compiled>> {
        let compile =
            |program: &&'static Program| Ok((program.name, self.compile(program, architecture)?));
        PROGRAMS.par_iter().map(compile).collect()
    }

    /// Checks that every program is prebuilt or that NVRTC can be opened. Compiles nothing.
    ///
    /// # Errors
    /// A program is not prebuilt and NVRTC was not found; the message names both the program and the places searched.
    pub fn check(&self, architecture: &str) -> Result<()> {
        PROGRAMS.iter().try_for_each(|program| {
            let source = Source::of(program, &self.sources)?;
            let prebuilt = self.prebuilt.has(program, &source, architecture);
            if !prebuilt || !self.prebuilt.loads(self.driver, architecture) {
                self.nvrtc_for(program, architecture)?;
            }
            Ok(())
        })
    }

    /// NVRTC, for a program that must be compiled.
    fn nvrtc_for(&self, program: &Program, architecture: &str) -> Result<&Nvrtc> {
        self.nvrtc().map_err(|why| {
            let lacks = self.prebuilt.lacks(program, architecture, self.driver);
            Error::Device(format!(
                "the program {} must be compiled for {architecture}, since {lacks}. {why}",
                program.name
            ))
        })
    }
}
