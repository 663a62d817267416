//! How a user ends a program.

use std::process::Child;

/// Sends SIGINT, as Ctrl-C does.
pub fn interrupt(child: &Child) {
    // SAFETY: a plain system call; whoever has the child has not waited for it, so the PID is its own.
    unsafe { libc::kill(child.id().cast_signed(), libc::SIGINT) };
}
