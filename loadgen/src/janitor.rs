//! The janitor: a process that outlives the parent, whatever happened to it, and cleans up behind it.
//!
//! It holds the reading end of a pipe whose writing end only the parent has. End of file means that the parent
//! has finished or is dead; both are handled in the same way.

use std::io::{self, PipeReader, PipeWriter, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _};
use std::time::Duration;

use crate::cgroup::Cgroup;
use crate::process::{self, Ended, Name};

/// How long to go on killing and removing before giving up.
const PATIENCE: Duration = Duration::from_secs(120);

/// The parent's side.
pub(crate) struct Janitor {
    pid: libc::pid_t,
    /// Closed when the parent has finished.
    _pipe: PipeWriter,
}

impl Janitor {
    /// Forks the janitor of a cgroup.
    pub(crate) fn start(cgroup: &Cgroup) -> io::Result<Self> {
        let (reader, writer) = io::pipe()?;
        let pid = process::fork(|| match work(&reader, cgroup) {
            Ok(()) => 0,
            Err(_) => 1,
        })?;
        Ok(Self { pid, _pipe: writer })
    }

    /// Tells the janitor that the parent has finished, and waits for it; false if something was left behind.
    pub(crate) fn finish(self) -> bool {
        let Self { pid, _pipe: pipe } = self;
        drop(pipe);
        matches!(process::wait(pid, 0), Some((_, Ended::Exited(0))))
    }
}

/// What the janitor's process does.
fn work(parent: &PipeReader, cgroup: &Cgroup) -> io::Result<()> {
    Name::new(format_args!("lg-janitor")).set();
    // A session of its own: neither a terminal's signals nor those to the parent's group reach it.
    // SAFETY: setsid and signal have no memory to go wrong with.
    unsafe {
        libc::setsid();
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::signal(signal, libc::SIG_IGN);
        }
    }
    let pipe = process::keep_only(parent.as_raw_fd())?;
    // SAFETY: `keep_only` returns an open descriptor that nothing else owns.
    let mut pipe = unsafe { PipeReader::from_raw_fd(pipe) };
    // Nothing is ever written: this returns when the parent has closed its end.
    _ = pipe.read(&mut [0]);
    cgroup.remove(PATIENCE)
}
