//! A child of the test's own process: what it is besides its parent's memory is known.

use std::ptr;

/// The child, which ends when dropped.
pub struct Child(i32);

impl Child {
    /// Forks; the child does what it is told, and ends with its parent at the latest.
    pub fn fork(work: impl FnOnce()) -> Self {
        // What earlier tests have freed would be the child's, too.
        // SAFETY: it only gives memory back that nobody uses.
        unsafe { libc::malloc_trim(0) };
        // SAFETY: the child only makes system calls and writes to memory of its own: other threads' locks, which it
        // has as they were, are nothing to it.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
        if pid == 0 {
            // SAFETY: it takes numbers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            work();
            // SAFETY: it does not return.
            unsafe { libc::_exit(0) };
        }
        Self(pid)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.0.unsigned_abs()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: plain system calls; the child has not been waited for, so the PID is its own.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, ptr::null_mut(), 0);
        }
    }
}
