//! The kernels of a cubin, read from its symbol table. A cubin is a 64-bit little-endian ELF file.
//!
//! ```text
//! file header      40: u64 offset of the section headers, 58: u16 bytes of one, 60: u16 their number
//! section header    4: u32 type (2 is the symbol table), 24: u64 offset, 32: u64 bytes, 40: u32 section of its names
//! symbol, 24 bytes  0: u32 offset of its name, 4: u8 type in the low 4 bits (2 is a function),
//!                   5: u8 flags; 0x10 marks a kernel
//! ```

const SYMBOL_TABLE: u32 = 2;
const FUNCTION: u8 = 2;
const KERNEL: u8 = 0x10;

/// Whether a file begins as a cubin does.
pub(super) fn is_elf(file: &[u8]) -> bool {
    file.starts_with(b"\x7fELF\x02\x01")
}

/// The names of all kernels.
///
/// # Errors
/// What is wrong with the file.
pub(super) fn kernels(cubin: &[u8]) -> Result<Vec<String>, String> {
    // Class 2 is 64-bit, data 1 little-endian.
    if !is_elf(cubin) {
        return Err("is not a 64-bit little-endian ELF file".to_owned());
    }
    let headers = number(cubin, 40, 8)?;
    let (bytes, count) = (number(cubin, 58, 2)?, number(cubin, 60, 2)?);
    // All of them lie within the file, so no sum below overflows.
    part(cubin, headers, bytes * count)?;
    let header = |index: u64| headers + index * bytes;
    let section = |index: u64| {
        let at = header(index);
        part(
            cubin,
            number(cubin, at + 24, 8)?,
            number(cubin, at + 32, 8)?,
        )
    };
    let mut kernels = Vec::new();
    for index in 0..count {
        let at = header(index);
        if number(cubin, at + 4, 4)? != u64::from(SYMBOL_TABLE) {
            continue;
        }
        let names = section(number(cubin, at + 40, 4)?)?;
        let (symbols, _) = section(index)?.as_chunks::<24>();
        for symbol in symbols {
            if symbol[4] & 0xf != FUNCTION || symbol[5] & KERNEL == 0 {
                continue;
            }
            let name = names.get(number(symbol, 0, 4)? as usize..).ok_or(TORN)?;
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            kernels.push(String::from_utf8_lossy(name).into_owned());
        }
    }
    Ok(kernels)
}

const TORN: &str = "is truncated: one of its tables lies beyond its end";

fn part(bytes: &[u8], at: u64, len: u64) -> Result<&[u8], String> {
    let range = (usize::try_from(at).ok()).zip(usize::try_from(len).ok());
    let range = range.and_then(|(at, len)| Some(at..at.checked_add(len)?));
    let part = range.and_then(|range| bytes.get(range));
    part.ok_or_else(|| TORN.to_owned())
}

/// The little-endian number of `len` bytes at `at`.
fn number(bytes: &[u8], at: u64, len: u64) -> Result<u64, String> {
    let part = part(bytes, at, len)?;
    Ok(part
        .iter()
        .rev()
        .fold(0, |n, byte| n << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with a section of names and a symbol table: a kernel, a device function, a variable.
    fn small() -> Vec<u8> {
        let names = b"\0first\0helper\0table\0";
        let mut file = vec![0; 64];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file.extend_from_slice(names);
        let symbols = file.len();
        for (name, kind, flags) in [(0, 0, 0), (1, 0x12, 0x10), (7, 0x12, 0), (14, 1, 0x10)] {
            let mut symbol = [0; 24];
            (symbol[0], symbol[4], symbol[5]) = (name, kind, flags);
            file.extend(symbol);
        }
        let headers = file.len();
        for (kind, at, len, link) in [(0, 0, 0, 0), (3, 64, names.len(), 0), (2, symbols, 96, 1)] {
            let mut header = [0; 64];
            header[4] = kind;
            header[24..32].copy_from_slice(&(at as u64).to_le_bytes());
            header[32..40].copy_from_slice(&(len as u64).to_le_bytes());
            header[40] = link;
            file.extend(header);
        }
        file[40..48].copy_from_slice(&(headers as u64).to_le_bytes());
        (file[58], file[60]) = (64, 3);
        file
    }

    #[test]
    fn kernels_are_told_from_functions_and_variables() {
        assert_eq!(kernels(&small()).unwrap(), ["first"]);
        assert!(kernels(b"//\n.version 9.0\n").is_err());
    }

    #[test]
    fn a_damaged_file_is_an_error_and_no_panic() {
        let whole = small();
        for len in 0..whole.len() {
            assert!(kernels(&whole[..len]).is_err(), "{len} bytes");
        }
        for at in 0..whole.len() {
            for byte in [0, 0x7f, 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                let _ = kernels(&changed);
            }
        }
    }
}
