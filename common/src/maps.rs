//! Whole BPF maps, read in batches.

use std::mem;

use anyhow::{Result, bail};
use libbpf_rs::{MapCore, MapFlags};
use plain::Plain;

/// Elements per system call. More than a hash table's bucket can hold, or the kernel could not hand over one.
const BATCH: u32 = 4_096;

/// Copies a value out of bytes from the kernel, for which no alignment is promised.
pub fn copy_out<T: Plain>(bytes: &[u8]) -> Result<T> {
    // SAFETY: Plain is for types to which every bit pattern is valid.
    let mut value: T = unsafe { mem::zeroed() };
    match value.copy_from_bytes(bytes) {
        Ok(()) => Ok(value),
        Err(_) => bail!(
            "the kernel gave {} bytes of `{}`",
            bytes.len(),
            std::any::type_name::<T>()
        ),
    }
}

/// Reads all elements of a map and checks that there were at least so many: a batched look-up that ends early
/// says nothing.
pub fn read_all<K, V>(map: &impl MapCore, at_least: u64) -> Result<Vec<(K, V)>>
where
    K: Plain,
    V: Plain,
{
    let batches = map.lookup_batch(BATCH.min(map.max_entries()), MapFlags::ANY, MapFlags::ANY)?;
    let elements: Vec<(K, V)> = batches
        .map(|(key, value)| Ok((copy_out(&key)?, copy_out(&value)?)))
        .collect::<Result<_>>()?;
    if (elements.len() as u64) < at_least {
        bail!(
            "failed to read map `{}`: {} of {at_least} elements",
            map.name().display(),
            elements.len()
        );
    }
    Ok(elements)
}
