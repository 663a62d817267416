//! Processes whose mergeable memory is known: pages of given contents, written to when the test says so.

use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::ptr;

use super::child::Child;

const PAGE_SIZE: usize = 4096;

/// A process with mergeable memory, which ends when dropped.
pub struct Mergeable {
    child: Child,
    orders: PipeWriter,
    answers: PipeReader,
}

impl Mergeable {
    /// A page for each of these: full of that number, so that pages of equal numbers are equal. madvise(2) asks for
    /// them to be merged.
    pub fn start(contents: &[u64]) -> Self {
        let (orders_out, orders) = pipe().unwrap();
        let (answers, answers_in) = pipe().unwrap();
        let child = Child::fork(move || live(contents, orders_out, answers_in));
        let mut memory = Self { child, orders, answers };
        memory.wait();
        memory
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Makes each of its first pages one that is like no other.
    pub fn write(&mut self, pages: usize) {
        self.orders.write_all(&pages.to_ne_bytes()).unwrap();
        self.wait();
    }

    fn wait(&mut self) {
        self.answers.read_exact(&mut [0]).expect("a process with memory");
    }
}

fn live(contents: &[u64], mut orders: PipeReader, mut answers: PipeWriter) {
    let bytes = contents.len() * PAGE_SIZE;
    // SAFETY: the memory is new, as long as is asked for, and never unmapped; it ends with the process, at once.
    unsafe {
        let memory = libc::mmap(
            ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        // Pages, not huge ones; on both sides of it is memory of others.
        let failed = memory == libc::MAP_FAILED
            || libc::madvise(memory, bytes, libc::MADV_NOHUGEPAGE) != 0
            || libc::madvise(memory, bytes, libc::MADV_MERGEABLE) != 0;
        if failed {
            libc::_exit(1);
        }
        let words = std::slice::from_raw_parts_mut(memory.cast::<u64>(), bytes / 8);
        for (page, &content) in words.chunks_mut(PAGE_SIZE / 8).zip(contents) {
            page.fill(content);
        }
        let mut order = [0; 8];
        while answers.write_all(&[1]).is_ok() && orders.read_exact(&mut order).is_ok() {
            let pages = usize::from_ne_bytes(order);
            for (number, page) in words.chunks_mut(PAGE_SIZE / 8).take(pages).enumerate() {
                page[0] = u64::from(libc::getpid().unsigned_abs()) << 32 | number as u64;
            }
        }
    }
}
