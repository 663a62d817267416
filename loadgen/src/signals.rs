//! Signals held back while guests are forked: whoever is forked then does not die of them, and the parent
//! finds them pending. And SIGUSR1, which is asked for.

use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;

use anyhow::{Result, bail};

const SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// While this exists the signals that end a run are pending, not delivered.
pub(crate) struct HeldBack {
    ours: libc::sigset_t,
    before: libc::sigset_t,
}

impl HeldBack {
    /// From here on.
    pub(crate) fn new() -> Result<Self> {
        let (mut ours, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: sigemptyset initialises the set that the next calls use.
        let failed = unsafe {
            libc::sigemptyset(ours.as_mut_ptr());
            for signal in SIGNALS {
                libc::sigaddset(ours.as_mut_ptr(), signal);
            }
            libc::pthread_sigmask(libc::SIG_BLOCK, ours.as_ptr(), before.as_mut_ptr())
        };
        if failed != 0 {
            bail!("failed to block signals");
        }
        // SAFETY: sigemptyset and pthread_sigmask have filled them in.
        let (ours, before) = unsafe { (ours.assume_init(), before.assume_init()) };
        Ok(Self { ours, before })
    }

    /// True if one of them has come in the meantime.
    pub(crate) fn pending(&self) -> bool {
        let mut pending = MaybeUninit::uninit();
        // SAFETY: sigpending initialises the set that sigismember reads.
        unsafe {
            libc::sigpending(pending.as_mut_ptr()) == 0
                && SIGNALS.iter().any(|signal| libc::sigismember(pending.as_ptr(), *signal) == 1)
        }
    }

    /// The program that this starts is not held back from them: what is blocked is inherited.
    pub(crate) fn spare<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        let before = self.before;
        let restore = move || {
            // SAFETY: the set is the one that pthread_sigmask returned.
            unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
            Ok(())
        };
        // SAFETY: pthread_sigmask is allowed between fork and exec, and nothing else is called.
        unsafe { command.pre_exec(restore) }
    }

    /// True if one of them has come; it is answered with that, and not delivered any more.
    pub(crate) fn take(&self) -> bool {
        take(&self.ours)
    }
}

impl Drop for HeldBack {
    fn drop(&mut self) {
        // SAFETY: the set is the one that pthread_sigmask returned.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut())
        };
    }
}

/// From here on SIGUSR1 does nothing but be found by [`Usr1::came`], and nothing at all to processes forked.
pub(crate) struct Usr1(libc::sigset_t);

impl Usr1 {
    /// Before there are threads, which inherit it.
    pub(crate) fn block() -> Result<Self> {
        let mut usr1 = MaybeUninit::uninit();
        // SAFETY: sigemptyset initialises the set that the next calls use.
        let failed = unsafe {
            libc::sigemptyset(usr1.as_mut_ptr());
            libc::sigaddset(usr1.as_mut_ptr(), libc::SIGUSR1);
            libc::pthread_sigmask(libc::SIG_BLOCK, usr1.as_ptr(), ptr::null_mut())
        };
        if failed != 0 {
            bail!("failed to block SIGUSR1");
        }
        // SAFETY: sigemptyset has filled it in.
        Ok(Self(unsafe { usr1.assume_init() }))
    }

    /// True if it has come since the last look: once or more often.
    pub(crate) fn came(&self) -> bool {
        take(&self.0)
    }
}

/// True if a signal of these, which are blocked, is pending: it is so no longer.
fn take(signals: &libc::sigset_t) -> bool {
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the set is valid, nobody wants to know more of the signal, and the timeout is valid.
    unsafe { libc::sigtimedwait(signals, ptr::null_mut(), &raw const at_once) > 0 }
}
