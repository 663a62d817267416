//! A process's merged pages where the kernel does not count them: before Linux 5.19 has `mm_struct.ksm_merging_pages`
//! they are looked at one by one, in all memory that is mergeable.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

use anyhow::{Context as _, Result};

use crate::processes::Sample;

/// Entries of these files have so many bytes (Documentation/admin-guide/mm/pagemap.rst).
const ENTRY: usize = size_of::<u64>();
/// How many of a process's are read at once.
const ENTRIES: usize = 4_096;
/// Bits of /proc/PID/pagemap.
const PRESENT: u64 = 1 << 63;
const PFN: u64 = (1 << 55) - 1;
/// A bit of /proc/kpageflags: KPF_KSM of include/uapi/linux/kernel-page-flags.h.
const KSM: u64 = 1 << 21;

/// The flags of all pages of the host.
pub struct Pages {
    flags: File,
    page_bytes: u64,
}

impl Pages {
    /// None if we may not read them.
    pub fn open(page_bytes: u64) -> Option<Self> {
        Some(Self { flags: File::open("/proc/kpageflags").ok()?, page_bytes })
    }

    /// The sample with its merged pages; none if the process has ended meanwhile.
    pub fn complete(&self, sample: Result<Sample>) -> Result<Option<Sample>> {
        let sample = sample?;
        let pid = sample.process.pid;
        match self.merged(pid) {
            Ok(merging_pages) => Ok(Some(Sample { merging_pages, ..sample })),
            Err(e) if e.kind() == ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {
                Ok(None)
            }
            Err(e) => Err(e).context(format!("failed to read the pages of process {pid}")),
        }
    }

    fn merged(&self, pid: i32) -> io::Result<u64> {
        let pagemap = File::open(format!("/proc/{pid}/pagemap"))?;
        let smaps = fs::read(format!("/proc/{pid}/smaps"))?;
        let mut merged = 0;
        let mut entries = vec![0; ENTRIES * ENTRY];
        for addresses in mergeable(&String::from_utf8_lossy(&smaps)) {
            let [mut page, end] = [addresses.start, addresses.end].map(|at| at / self.page_bytes);
            while page < end {
                let wanted = ENTRIES.min(usize::try_from(end - page).unwrap_or(ENTRIES));
                let read = pagemap.read_at(&mut entries[..wanted * ENTRY], page * ENTRY as u64)?;
                for entry in entries[..read].chunks_exact(ENTRY) {
                    let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
                    merged += u64::from(entry & PRESENT != 0 && self.is_merged(entry & PFN)?);
                }
                if read < ENTRY {
                    break;
                }
                page += (read / ENTRY) as u64;
            }
        }
        Ok(merged)
    }

    fn is_merged(&self, frame: u64) -> io::Result<bool> {
        let mut flags = [0; ENTRY];
        self.flags.read_exact_at(&mut flags, frame * ENTRY as u64)?;
        Ok(u64::from_ne_bytes(flags) & KSM != 0)
    }
}

/// The addresses that KSM may merge (`mg`), out of /proc/PID/smaps.
fn mergeable(smaps: &str) -> Vec<Range<u64>> {
    let (mut found, mut range) = (vec![], None);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let [start, end] = [start, end].map(|hex| u64::from_str_radix(hex, 16).ok());
            range = start.zip(end).map(|(start, end)| start..end);
        } else if first == "VmFlags:" && words.any(|flag| flag == "mg") {
            found.extend(range.take());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mergeable_memory_is_found() {
        let smaps = "\
55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]
Rss:                  20 kB
VmFlags: rd wr mr mw me ac
7f0000000000-7f0000004000 rw-p 00000000 00:00 0
Rss:                  16 kB
VmFlags: rd wr mr mw me ac mg
7f0000004000-7f0000008000 rw-p 00000000 00:00 0
VmFlags: rd wr mg
";
        let expected = [0x7f00_0000_0000..0x7f00_0000_4000, 0x7f00_0000_4000..0x7f00_0000_8000];
        assert_eq!(mergeable(smaps), expected);
    }
}
