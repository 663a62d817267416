//! The load: two threads on one CPU that wake each other through pipes, so that every read is a context switch.

use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::schedstat::times_on_cpu;

/// What it fires.
pub const TRACEPOINT: &str = "sched_switch";

/// Never CPU 1: on some kernels sched_switch does not fire for switches away from its idle task.
const CPU: usize = 0;
/// Of each side's thread.
const BOOKS: &str = "/proc/thread-self";

/// What a game was.
#[derive(Clone, Copy, Debug)]
pub struct Game {
    /// Of one round trip.
    pub round_trip: Duration,
    /// How often the two threads got the CPU.
    pub switches: u64,
}

/// Plays so many round trips.
pub fn play(round_trips: u32) -> Result<Game> {
    let (ping_in, ping_out) = pipe().context("failed to make a pipe")?;
    let (pong_in, pong_out) = pipe().context("failed to make a pipe")?;
    let (first, second) = thread::scope(|scope| {
        let first = scope.spawn(move || side(ping_out, pong_in, round_trips, true));
        let second = scope.spawn(move || side(pong_out, ping_in, round_trips, false));
        (first.join(), second.join())
    });
    let (Ok(first), Ok(second)) = (first, second) else { bail!("a ping-pong thread panicked") };
    let ((time, first), (_, second)) = (first?, second?);
    Ok(Game { round_trip: time / round_trips, switches: first + second })
}

/// One thread: how long it played, and how often it got the CPU meanwhile.
fn side(mut to: PipeWriter, mut from: PipeReader, n: u32, serves: bool) -> Result<(Duration, u64)> {
    pin()?;
    let mut ball = [0];
    // The game begins when both are here.
    if serves {
        to.write_all(&ball)?;
        from.read_exact(&mut ball)?;
    } else {
        from.read_exact(&mut ball)?;
        to.write_all(&ball)?;
    }
    let (switches, start) = (times_on_cpu(BOOKS)?, Instant::now());
    for _ in 0..n {
        if serves {
            to.write_all(&ball)?;
            from.read_exact(&mut ball)?;
        } else {
            from.read_exact(&mut ball)?;
            to.write_all(&ball)?;
        }
    }
    Ok((start.elapsed(), times_on_cpu(BOOKS)? - switches))
}

fn pin() -> Result<()> {
    // SAFETY: an all-zero cpu_set_t is an empty set, and it outlives the call.
    let result = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(CPU, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if result != 0 {
        bail!("failed to bind a thread to CPU {CPU}");
    }
    Ok(())
}
