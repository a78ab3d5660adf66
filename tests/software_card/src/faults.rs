//! Statuses, their names, and failures on request.

use std::collections::BTreeMap;
use std::ffi::{CStr, c_int};

/// What a function returns; 0 is success.
pub(crate) type Status = c_int;

pub(crate) const INVALID_VALUE: Status = 1;
pub(crate) const OUT_OF_MEMORY: Status = 2;
pub(crate) const NOT_INITIALIZED: Status = 3;
pub(crate) const INVALID_DEVICE: Status = 101;
pub(crate) const INVALID_CONTEXT: Status = 201;
pub(crate) const NO_BINARY_FOR_GPU: Status = 209;
pub(crate) const INVALID_PTX: Status = 218;
pub(crate) const INVALID_HANDLE: Status = 400;
pub(crate) const NOT_FOUND: Status = 500;
pub(crate) const NOT_READY: Status = 600;
pub(crate) const ILLEGAL_ADDRESS: Status = 700;

/// Names and texts of the statuses, as the driver gives them. 226 is not in the list: it stands for a status of a newer
/// driver.
const NAMES: [(Status, &CStr, &CStr); 14] = [
    (0, c"CUDA_SUCCESS", c"no error"),
    (
        INVALID_VALUE,
        c"CUDA_ERROR_INVALID_VALUE",
        c"invalid argument",
    ),
    (OUT_OF_MEMORY, c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
    (
        NOT_INITIALIZED,
        c"CUDA_ERROR_NOT_INITIALIZED",
        c"initialization error",
    ),
    (
        INVALID_DEVICE,
        c"CUDA_ERROR_INVALID_DEVICE",
        c"invalid device ordinal",
    ),
    (
        INVALID_CONTEXT,
        c"CUDA_ERROR_INVALID_CONTEXT",
        c"invalid device context",
    ),
    (
        NO_BINARY_FOR_GPU,
        c"CUDA_ERROR_NO_BINARY_FOR_GPU",
        c"no kernel image is available for execution on the device",
    ),
    (
        INVALID_PTX,
        c"CUDA_ERROR_INVALID_PTX",
        c"a PTX JIT compilation failed",
    ),
    (
        INVALID_HANDLE,
        c"CUDA_ERROR_INVALID_HANDLE",
        c"invalid resource handle",
    ),
    (
        NOT_FOUND,
        c"CUDA_ERROR_NOT_FOUND",
        c"named symbol not found",
    ),
    (NOT_READY, c"CUDA_ERROR_NOT_READY", c"device not ready"),
    (
        ILLEGAL_ADDRESS,
        c"CUDA_ERROR_ILLEGAL_ADDRESS",
        c"an illegal memory access was encountered",
    ),
    (
        719,
        c"CUDA_ERROR_LAUNCH_FAILED",
        c"unspecified launch failure",
    ),
    (999, c"CUDA_ERROR_UNKNOWN", c"unknown error"),
];

/// Name and text of a status, if it is known.
pub(crate) fn known(status: Status) -> Option<(&'static CStr, &'static CStr)> {
    let found = NAMES.iter().find(|(known, ..)| *known == status);
    found.map(|(_, name, text)| (*name, *text))
}

/// Whether this status destroys the context.
pub(crate) fn is_fatal(status: Status) -> bool {
    matches!(status, 214 | 700..=720 | 999)
}

/// Requested failures.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    /// Function, which of its calls, status.
    requests: Vec<(String, u64, Status)>,
    calls: BTreeMap<&'static str, u64>,
    all: u64,
}

impl Requests {
    /// Reads `FUNCTION:N:STATUS,...`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let requests = text.split(',').map(|request| {
            let (function, rest) = request.trim().split_once(':')?;
            let (n, status) = rest.split_once(':')?;
            Some((function.to_owned(), n.parse().ok()?, status.parse().ok()?))
        });
        Some(Requests {
            requests: requests.collect::<Option<_>>()?,
            ..Requests::default()
        })
    }

    /// The functions that were called, and how often; `*` stands for all of them.
    pub(crate) fn calls(&self) -> impl Iterator<Item = (&'static str, u64)> {
        let each = self
            .calls
            .iter()
            .map(|(function, calls)| (*function, *calls));
        std::iter::once(("*", self.all)).chain(each)
    }

    /// Counts a call, and returns the status that it must fail with.
    pub(crate) fn count(&mut self, function: &'static str) -> Option<Status> {
        self.all += 1;
        let calls = self.calls.entry(function).or_default();
        *calls += 1;
        let due = self.requests.iter().find(|(name, n, _)| match &name[..] {
            "*" => *n == self.all,
            name => name == function && *n == *calls,
        });
        due.map(|(.., status)| *status)
    }
}
