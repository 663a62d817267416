//! Nice value and scheduling policy of guests' threads, and whether this process may give them.

use std::io;

use anyhow::Result;
use common::session::host_cannot;

use crate::controls::{Controls, Sched};
use crate::process;

/// What guests get where there is no cgroup with a weight.
const NICE: i32 = 19;

/// What a thread is to have; what is none stays as it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Priority {
    nice: Option<i32>,
    sched: Option<Sched>,
}

impl Priority {
    /// As asked for.
    pub(crate) fn new(controls: &Controls) -> Self {
        Self { nice: controls.nice, sched: controls.sched }
    }

    /// The same where guests have no weight: if they are not to be nice, they are now. And a sentence about it.
    pub(crate) fn without_weight(self) -> (Self, Option<String>) {
        if self.nice.is_some() {
            return (self, None);
        }
        let warning = format!(
            "no cgroup with a cpu weight could be made (not root, or no cpu controller): \
             guests run at nice {NICE} instead"
        );
        (Self { nice: Some(NICE), ..self }, Some(warning))
    }

    /// Refuses what this process may not give. Only the kernel knows: a child tries.
    pub(crate) fn check(self) -> Result<()> {
        if self.nice.is_none() && self.sched.is_none() {
            return Ok(());
        }
        process::try_in_child(|| self.apply()).map_err(|e| {
            let remedy = match self.nice {
                // getrlimit(2): RLIMIT_NICE is 20 minus the nice value.
                Some(nice) => format!(
                    "nice {nice}: {e}: run as root, raise the limit (ulimit -e {})",
                    20 - nice
                ),
                None => format!("this policy: {e}: run as root"),
            };
            host_cannot(format!(
                "not allowed to run guests with {remedy}, or leave out --nice and --sched"
            ))
        })
    }

    /// Gives it to the calling thread, and to all that it starts from now on.
    pub(crate) fn apply(self) -> io::Result<()> {
        if let Some(sched) = self.sched {
            let policy = match sched {
                Sched::Other => libc::SCHED_OTHER,
                Sched::Batch => libc::SCHED_BATCH,
                Sched::Idle => libc::SCHED_IDLE,
            };
            let param = libc::sched_param { sched_priority: 0 };
            // SAFETY: the kernel reads `param`, which is valid for policies without a static priority.
            if unsafe { libc::sched_setscheduler(0, policy, &raw const param) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if let Some(nice) = self.nice {
            // SAFETY: setpriority has no memory to go wrong with.
            if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}
