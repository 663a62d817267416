//! Processes whose mergeable memory is known: pages of given contents, written to when the test says so.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::FromRawFd as _;
use std::ptr;

const PAGE_SIZE: usize = 4096;

/// A process with mergeable memory, which ends when dropped.
pub struct Mergeable {
    pid: i32,
    orders: File,
    answers: File,
}

impl Mergeable {
    /// A page for each of these: full of that number, so that pages of equal numbers are equal. madvise(2) asks for
    /// them to be merged.
    pub fn start(contents: &[u64]) -> Self {
        let (orders_out, orders) = pipe();
        let (answers, answers_in) = pipe();
        // What earlier tests have freed would be the child's, too.
        // SAFETY: it only gives memory back that nobody uses.
        unsafe { libc::malloc_trim(0) };
        // SAFETY: the child only makes system calls and writes to memory of its own: other threads' locks, which it
        // has as they were, are nothing to it.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            drop((orders, answers));
            child(contents, orders_out, answers_in);
        }
        let mut memory = Self { pid, orders, answers };
        memory.wait();
        memory
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.pid.unsigned_abs()
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

impl Drop for Mergeable {
    fn drop(&mut self) {
        // SAFETY: plain system calls; the child has not been waited for, so the PID is its own.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, ptr::null_mut(), 0);
        }
    }
}

fn pipe() -> (File, File) {
    let mut fds = [0; 2];
    // SAFETY: there is room for two descriptors, which are nobody else's.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1]))
    }
}

fn child(contents: &[u64], mut orders: File, mut answers: File) -> ! {
    let bytes = contents.len() * PAGE_SIZE;
    // SAFETY: the memory is new, as long as is asked for, and never unmapped; it ends with the process, at once.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
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
        libc::_exit(0)
    }
}
