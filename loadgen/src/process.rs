//! Processes made by forking: what a child does first, so that it outlives nobody and keeps nothing open.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process;
use std::ptr;

use anyhow::{Context as _, Result, bail};

/// The exit status of a child whose code panicked.
const PANICKED: i32 = 101;

/// Forks; the child runs `child` and exits with what it returns. Returns the child's PID.
///
/// The calling process must have one thread: see [`check_single_threaded`].
pub(crate) fn fork(child: impl FnOnce() -> i32) -> io::Result<libc::pid_t> {
    // SAFETY: with a single thread, no lock can be held by somebody who does not exist in the child.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            // Unwinding any further would run the parent's code in the child.
            let status = catch_unwind(AssertUnwindSafe(child)).unwrap_or(PANICKED);
            exit_now(status)
        }
        pid => Ok(pid),
    }
}

/// Whether something can be done that cannot be undone: a child does it. With one thread only, as [`fork`].
pub(crate) fn try_in_child(attempt: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let errno = |e: io::Error| e.raw_os_error().unwrap_or(libc::EIO);
    let pid = fork(|| attempt().map_or_else(errno, |()| 0))?;
    match wait(pid, 0) {
        Some((_, Ended::Exited(0))) => Ok(()),
        Some((_, Ended::Exited(errno))) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::other("the attempt was ended by a signal")),
    }
}

/// Ends this process at once, with all its threads; nothing that was inherited is flushed or dropped.
pub(crate) fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// Refuses to go on in a process that has more than one thread: forking it would copy held locks.
pub(crate) fn check_single_threaded() -> Result<()> {
    let threads =
        fs::read_dir("/proc/self/task").context("failed to read `/proc/self/task`")?.count();
    if threads != 1 {
        bail!(
            "failed to create a fleet: it forks, so this process must have one thread, not {threads}"
        );
    }
    Ok(())
}

/// Asks the kernel to kill this process when its parent ends; fails if that has happened already.
pub(crate) fn die_with(parent: u32) -> io::Result<()> {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    let result = unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    if std::os::unix::process::parent_id() != parent {
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    Ok(())
}

/// A thread's name as the kernel keeps it: 15 bytes at most, and a NUL. Making one does not allocate.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Name([u8; 16]);

impl Name {
    /// What does not fit is cut off.
    pub(crate) fn new(name: fmt::Arguments<'_>) -> Self {
        let mut bytes = [0; 16];
        // It fails if there is no room for all.
        _ = (&mut bytes[..15]).write_fmt(name);
        Self(bytes)
    }

    /// Gives it to the calling thread. On a process's main thread it names the process.
    pub(crate) fn set(&self) {
        // SAFETY: PR_SET_NAME reads up to the NUL, which is at the end if nowhere before.
        unsafe { libc::prctl(libc::PR_SET_NAME, self.0.as_ptr()) };
    }
}

/// Lets SIGTERM end this process at once, whatever the parent does with it. None of the calls can fail.
pub(crate) fn die_of_sigterm() {
    let mut sigterm = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set that the next calls use; the default action runs no code of ours.
    unsafe {
        libc::signal(libc::SIGTERM, libc::SIG_DFL);
        libc::sigemptyset(sigterm.as_mut_ptr());
        libc::sigaddset(sigterm.as_mut_ptr(), libc::SIGTERM);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, sigterm.as_ptr(), ptr::null_mut());
    }
}

/// The calling thread's TID.
pub(crate) fn gettid() -> u32 {
    // SAFETY: gettid has no preconditions.
    let tid = unsafe { libc::gettid() };
    tid.unsigned_abs()
}

/// Gives up every file inherited from the parent but `keep`, which becomes the file descriptor returned. A
/// child that kept the parent's standard output open would keep the reader of that pipe waiting.
pub(crate) fn keep_only(keep: RawFd) -> io::Result<RawFd> {
    const KEPT: RawFd = 3;
    if keep != KEPT {
        duplicate(keep, KEPT)?;
    }
    // SAFETY: the descriptors closed belong to values inherited from the parent, which this process never
    // uses or drops: it ends in `exit_now`.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, KEPT + 1, libc::c_uint::MAX, 0) };
    if closed != 0 {
        return Err(io::Error::last_os_error());
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    for standard in 0..=2 {
        duplicate(null.as_raw_fd(), standard)?;
    }
    Ok(KEPT)
}

/// dup2, for a `to` that nothing in this process owns.
fn duplicate(from: RawFd, to: RawFd) -> io::Result<()> {
    // SAFETY: see `keep_only`: whatever `to` was is not used again.
    match unsafe { libc::dup2(from, to) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Killed(i32),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(status) => write!(f, "exited with status {status}"),
            Self::Killed(signal) => write!(f, "was killed by signal {signal}"),
        }
    }
}

/// Waits for a child: `which` and `options` as for waitpid(2). None if there is nothing to report.
pub(crate) fn wait(which: libc::pid_t, options: i32) -> Option<(libc::pid_t, Ended)> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is a valid place for the result.
        match unsafe { libc::waitpid(which, &raw mut status, options) } {
            0 => return None,
            -1 if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            -1 => return None,
            pid if libc::WIFEXITED(status) => {
                return Some((pid, Ended::Exited(libc::WEXITSTATUS(status))));
            }
            pid => return Some((pid, Ended::Killed(libc::WTERMSIG(status)))),
        }
    }
}

/// This process's PID.
pub(crate) fn pid() -> u32 {
    process::id()
}
