//! A process whose memory is as a test wants it: which mappings, what is in them, who asks for merging, what goes on.

use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::ptr;

use crate::util::child::Child;

const PAGE_SIZE: usize = 4_096;
/// include/uapi/linux/prctl.h, Linux 6.4.
const PR_SET_MEMORY_MERGE: libc::c_int = 67;

/// What is in a region's pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Nothing: they are not touched.
    Untouched,
    /// The same in all.
    Equal,
    /// In each something else.
    Unique,
    /// In each something else, and the same in other such regions.
    Numbered,
    /// Zeroes.
    Zero,
}

/// What goes on in a region once it is filled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Still,
    /// Each page is written to all the time.
    Rewritten,
    /// Somebody else holds each page.
    Pinned,
}

/// A mapping.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    pub pages: usize,
    pub contents: Contents,
    /// For mmap(2).
    pub flags: libc::c_int,
    /// For madvise(2), one after the other; that it is refused is no failure.
    pub advice: &'static [libc::c_int],
    /// The NUMA node that its pages must be on, if that matters.
    pub node: Option<u32>,
    pub then: Then,
}

/// Private and mergeable, in small pages, as a VMM asks for it.
pub const MERGEABLE: Region = Region {
    pages: 4_099,
    contents: Contents::Unique,
    flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
    advice: &[libc::MADV_NOHUGEPAGE, libc::MADV_MERGEABLE],
    node: None,
    then: Then::Still,
};

/// The process; it ends when dropped.
pub struct Regions {
    child: Child,
    _alive: PipeReader,
}

impl Regions {
    /// Returns when all regions are filled.
    pub fn start(regions: &[Region]) -> Self {
        Self::start_after(regions, || {})
    }

    /// The same in a process that asks for all its memory to be merged. Linux 6.4.
    pub fn start_merging_any(regions: &[Region]) -> Self {
        Self::start_after(regions, || {
            // SAFETY: it takes numbers.
            let result = unsafe { libc::prctl(PR_SET_MEMORY_MERGE, 1, 0, 0, 0) };
            if result != 0 {
                exit(2);
            }
        })
    }

    fn start_after(regions: &[Region], first: impl FnOnce()) -> Self {
        let (mut ready, ready_in) = pipe().unwrap();
        let child = Child::fork(move || {
            first();
            live(regions, ready_in);
        });
        ready.read_exact(&mut [0]).expect("a process with such memory");
        Self { child, _alive: ready }
    }

    pub fn pid(&self) -> String {
        self.child.pid().to_string()
    }

    /// Ends it now.
    pub fn end(self) {
        drop(self);
    }
}

fn exit(status: i32) -> ! {
    // SAFETY: it does not return.
    unsafe { libc::_exit(status) }
}

fn live(regions: &[Region], mut ready: PipeWriter) -> ! {
    let mut rewritten = Vec::new();
    for region in regions {
        let memory = map(region);
        match region.then {
            Then::Still => {}
            Then::Rewritten => rewritten.push(memory),
            Then::Pinned => pin(memory),
        }
    }
    if ready.write_all(&[1]).is_err() {
        exit(3);
    }
    for round in 1.. {
        for memory in &mut rewritten {
            memory.iter_mut().skip(1).step_by(PAGE_SIZE / 8).for_each(|word| *word = round);
        }
        if rewritten.is_empty() {
            // SAFETY: it only sleeps.
            unsafe { libc::pause() };
        }
    }
    exit(0)
}

/// Maps and fills a region. It is never unmapped.
fn map(region: &Region) -> &'static mut [u64] {
    let bytes = region.pages * PAGE_SIZE;
    // SAFETY: the memory is new, as long as is asked for, and stays.
    let words = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let memory = libc::mmap(ptr::null_mut(), bytes, access, region.flags, -1, 0);
        if memory == libc::MAP_FAILED {
            exit(4);
        }
        for &advice in region.advice {
            libc::madvise(memory, bytes, advice);
        }
        if let Some(node) = region.node {
            let (mask, most) = (1_u64 << node, u64::BITS);
            let (call, mode) = (libc::SYS_mbind, libc::MPOL_BIND);
            if libc::syscall(call, memory, bytes, mode, &raw const mask, most, 0) != 0 {
                exit(6);
            }
        }
        std::slice::from_raw_parts_mut(memory.cast::<u64>(), bytes / 8)
    };
    let first = words.as_ptr() as u64;
    for (number, page) in (0_u64..).zip(words.chunks_mut(PAGE_SIZE / 8)) {
        match region.contents {
            Contents::Untouched => {}
            Contents::Equal => page[0] = 0x5eed,
            Contents::Unique => page[0] = first + number,
            Contents::Numbered => page[0] = 1 + number,
            Contents::Zero => page.fill(0),
        }
    }
    words
}

/// Puts each page into a pipe that nobody reads: the pipe holds it (vmsplice(2)).
fn pin(memory: &[u64]) {
    let mut fds = [0; 2];
    let bytes = memory.len() * 8;
    let vector = libc::iovec { iov_base: memory.as_ptr().cast_mut().cast(), iov_len: bytes };
    // SAFETY: the pipe stays open, and the memory mapped, as long as the process lives.
    unsafe {
        let piped = libc::pipe(fds.as_mut_ptr()) == 0
            && libc::fcntl(fds[1], libc::F_SETPIPE_SZ, 1_048_576) > 0
            && libc::vmsplice(fds[1], &raw const vector, 1, 0) == bytes as isize;
        if !piped {
            exit(5);
        }
    }
}
