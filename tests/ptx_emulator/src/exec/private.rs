//! The memory of a thread's own, and the kernel's parameters.

use super::memory::{Cells, Found};
use super::{Result, lanes_of};
use crate::block::{Env, Warp};
use crate::fault::{Check, Trouble};

#[inline(never)]
pub(super) fn load_parameters<const N: usize>(
    env: &Env<'_>,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    cells: &mut Cells<N>,
) -> Result<Found> {
    let parameters = env.launch.parameters;
    // One address for all lanes is the rule.
    let same = at.iter().all(|&other| other == at[0]);
    for lane in lanes_of(mask) {
        let data = usize::try_from(at[lane])
            .ok()
            .and_then(|first| parameters.get(first..)?.get(..bytes as usize));
        let Some(data) = data else {
            return Err(Trouble::at(
                Check::OutOfBounds,
                lane,
                at[lane],
                format!("the kernel has {} bytes of parameters", parameters.len()),
            ));
        };
        let to = if same { 0 } else { lane };
        for (word, chunk) in cells[to].iter_mut().zip(data.chunks(4)) {
            let mut whole = [0; 4];
            whole[..chunk.len()].copy_from_slice(chunk);
            *word = u32::from_le_bytes(whole);
        }
        if same {
            return Ok(Found::Same);
        }
    }
    Ok(Found::Each)
}

fn check_local(warp: &Warp, at: &[u64; 32], bytes: u32, mask: u32) -> Result<()> {
    let size = 4 * warp.local.len() as u64;
    match lanes_of(mask).find(|&lane| at[lane] >= size || at[lane] + u64::from(bytes) > size) {
        None => Ok(()),
        Some(lane) => Err(Trouble::at(
            Check::OutOfBounds,
            lane,
            at[lane],
            format!(
                "{bytes} bytes at offset {} of local memory, of which a thread has {size} bytes",
                at[lane] as i64
            ),
        )),
    }
}

/// Which bytes of its first word an access touches.
fn byte_mask(at: u64, bytes: u32) -> u8 {
    if bytes < 4 {
        ((1 << bytes) - 1) << (at % 4)
    } else {
        15
    }
}

#[inline(never)]
pub(super) fn load_local<const N: usize>(
    warp: &Warp,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    cells: &mut Cells<N>,
) -> Result<Found> {
    check_local(warp, at, bytes, mask)?;
    for lane in lanes_of(mask) {
        let first = (at[lane] / 4) as usize;
        let needed = byte_mask(at[lane], bytes);
        for (k, word) in cells[lane].iter_mut().enumerate() {
            if warp.local_written[first + k][lane] & needed != needed {
                return Err(Trouble::at(
                    Check::Uninitialised,
                    lane,
                    at[lane],
                    format!(
                        "{bytes} bytes at offset {} of local memory, where the thread has not written all of them",
                        at[lane]
                    ),
                ));
            }
            *word = warp.local[first + k].lanes()[lane];
            if bytes < 4 {
                *word = *word >> (8 * (at[lane] % 4)) & (u32::MAX >> (32 - 8 * bytes));
            }
        }
    }
    Ok(Found::Each)
}

#[inline(never)]
pub(super) fn store_local<const N: usize>(
    warp: &mut Warp,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    cells: &Cells<N>,
) -> Result<()> {
    check_local(warp, at, bytes, mask)?;
    for lane in lanes_of(mask) {
        let first = (at[lane] / 4) as usize;
        if bytes < 4 {
            let shift = 8 * (at[lane] % 4) as u32;
            let bits = (u32::MAX >> (32 - 8 * bytes)) << shift;
            let word = &mut warp.local[first].lanes_mut()[lane];
            *word = (*word & !bits) | (cells[lane][0] << shift & bits);
            warp.local_written[first][lane] |= byte_mask(at[lane], bytes);
            continue;
        }
        for (k, &word) in cells[lane].iter().enumerate() {
            warp.local[first + k].lanes_mut()[lane] = word;
            warp.local_written[first + k][lane] = 15;
        }
    }
    Ok(())
}
