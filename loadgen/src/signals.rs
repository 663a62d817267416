//! Signals held back as long as guests may be forked: whoever is forked then does not die of them, and the parent
//! finds them pending: no thread that waits for them would be forked along. And SIGUSR1, which is asked for.

use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::ptr;
use std::time::Instant;

use anyhow::{Result, bail};
use common::session::is_ignored;

const SIGNALS: [i32; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

/// While this exists the signals that end a run are pending, not delivered; so is the one of a child that has ended.
pub(crate) struct HeldBack {
    ours: libc::sigset_t,
    and_child: libc::sigset_t,
    before: libc::sigset_t,
}

impl HeldBack {
    /// From here on.
    pub(crate) fn new() -> Result<Self> {
        // Under nohup(1) it is ignored; SIGINT is, too, of a shell script's `command &`, but nobody has asked for that.
        let signals = SIGNALS.into_iter().filter(|s| *s != libc::SIGHUP || !is_ignored(*s));
        let (mut ours, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
        // SAFETY: sigemptyset initialises the set that the next calls use.
        let (ours, and_child, failed) = unsafe {
            libc::sigemptyset(ours.as_mut_ptr());
            let mut ours = ours.assume_init();
            signals.for_each(|signal| _ = libc::sigaddset(&raw mut ours, signal));
            let mut and_child = ours;
            libc::sigaddset(&raw mut and_child, libc::SIGCHLD);
            let block = libc::SIG_BLOCK;
            let failed = libc::pthread_sigmask(block, &raw const and_child, before.as_mut_ptr());
            (ours, and_child, failed)
        };
        if failed != 0 {
            bail!("failed to block signals");
        }
        // SAFETY: pthread_sigmask has filled it in.
        Ok(Self { ours, and_child, before: unsafe { before.assume_init() } })
    }

    /// True if one of them has come in the meantime.
    pub(crate) fn pending(&self) -> bool {
        let mut pending = MaybeUninit::uninit();
        // SAFETY: sigpending initialises the set that sigismember reads.
        unsafe {
            libc::sigpending(pending.as_mut_ptr()) == 0
                && SIGNALS.iter().any(|signal| {
                    libc::sigismember(&raw const self.ours, *signal) == 1
                        && libc::sigismember(pending.as_ptr(), *signal) == 1
                })
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
        take(&self.ours, Instant::now()).is_some()
    }

    /// Waits for that until then.
    pub(crate) fn wait_until(&self, end: Instant) -> bool {
        take(&self.ours, end).is_some()
    }

    /// The same, but no longer than until a child has ended.
    pub(crate) fn wait_for_child_until(&self, end: Instant) -> bool {
        take(&self.and_child, end).is_some_and(|signal| signal != libc::SIGCHLD)
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
        take(&self.0, Instant::now()).is_some()
    }
}

/// A signal of these, which are blocked, if one is pending or comes until then: it is pending no longer.
fn take(signals: &libc::sigset_t, end: Instant) -> Option<i32> {
    let left = end.saturating_duration_since(Instant::now());
    let left = libc::timespec {
        tv_sec: left.as_secs().cast_signed(),
        tv_nsec: left.subsec_nanos().into(),
    };
    // SAFETY: the set is valid, nobody wants to know more of the signal, and the timeout is valid.
    let signal = unsafe { libc::sigtimedwait(signals, ptr::null_mut(), &raw const left) };
    (signal > 0).then_some(signal)
}
