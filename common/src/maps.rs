//! Whole BPF maps, read in batches.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::{io, mem, ptr};

use anyhow::{Context as _, Result, bail};
use libbpf_rs::{MapCore, libbpf_sys};
use plain::Plain;

/// Elements per system call.
const BATCH: u32 = 4_096;

/// Copies a value out of bytes from the kernel, for which no alignment is promised.
pub fn copy_out<T: Plain>(bytes: &[u8]) -> Result<T> {
    // SAFETY: Plain is for types to which every bit pattern is valid.
    let mut value: T = unsafe { mem::zeroed() };
    match value.copy_from_bytes(bytes) {
        Ok(()) => Ok(value),
        Err(_) => {
            bail!("the kernel gave {} bytes of `{}`", bytes.len(), std::any::type_name::<T>())
        }
    }
}

/// Reads all elements of a map and checks that there were at least so many.
///
/// The batches are our own: `libbpf_rs::MapCore::lookup_batch` (0.27) takes a batch that is not full for the last
/// one, but a hash table's may be short wherever the next bucket would not fit whole, and the rest is then lost
/// without a word (`__htab_map_lookup_and_delete_batch()` in kernel/bpf/hashtab.c).
pub fn read_all<K: Plain, V: Plain>(map: &impl MapCore, at_least: u64) -> Result<Vec<(K, V)>> {
    let name = map.name().display().to_string();
    let mut elements = Vec::new();
    let mut batch = Batch::new(map, BATCH.min(map.max_entries()));
    loop {
        let more = batch.next().with_context(|| format!("failed to read map `{name}`"))?;
        for (key, value) in batch.elements() {
            elements.push((copy_out(key)?, copy_out(value)?));
        }
        if !more {
            break;
        }
    }
    if (elements.len() as u64) < at_least {
        bail!("failed to read map `{name}`: {} of {at_least} elements", elements.len());
    }
    Ok(elements)
}

/// A walk through a map, as many elements at a time as the kernel will give.
struct Batch<'map> {
    fd: BorrowedFd<'map>,
    key_size: usize,
    value_size: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
    /// Where the walk is: opaque to us, at most a key long (a hash table's bucket number: 4 bytes).
    position: Vec<u8>,
    started: bool,
    capacity: u32,
    count: u32,
}

impl<'map> Batch<'map> {
    fn new(map: &'map impl MapCore, capacity: u32) -> Self {
        let (key_size, value_size) = (map.key_size() as usize, map.value_size() as usize);
        Self {
            fd: map.as_fd(),
            key_size,
            value_size,
            keys: vec![0; key_size * capacity as usize],
            values: vec![0; value_size * capacity as usize],
            position: vec![0; key_size.max(size_of::<u32>())],
            started: false,
            capacity,
            count: 0,
        }
    }

    /// Fetches the next elements. False if they are the last.
    fn next(&mut self) -> io::Result<bool> {
        loop {
            self.count = self.capacity;
            let from = if self.started { self.position.as_mut_ptr() } else { ptr::null_mut() };
            // SAFETY: the buffers hold `count` keys and values and a position. The kernel reads `from` before it
            // writes the new position to the same place.
            let result = unsafe {
                libbpf_sys::bpf_map_lookup_batch(
                    self.fd.as_raw_fd(),
                    from.cast(),
                    self.position.as_mut_ptr().cast(),
                    self.keys.as_mut_ptr().cast(),
                    self.values.as_mut_ptr().cast(),
                    &mut self.count,
                    ptr::null(),
                )
            };
            self.started |= result == 0;
            match -result {
                0 => return Ok(true),
                libc::ENOENT => return Ok(false),
                libc::EINTR => {}
                // A bucket holds more than the whole batch: nothing was read.
                libc::ENOSPC => self.grow(),
                errno => return Err(io::Error::from_raw_os_error(errno)),
            }
        }
    }

    fn grow(&mut self) {
        self.capacity *= 2;
        self.keys.resize(self.key_size * self.capacity as usize, 0);
        self.values.resize(self.value_size * self.capacity as usize, 0);
    }

    fn elements(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let (keys, values) = (self.keys.chunks(self.key_size), self.values.chunks(self.value_size));
        keys.zip(values).take(self.count as usize)
    }
}
