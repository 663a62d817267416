//! Guests that come and go while the others run: so many a second are told to leave, the oldest first, and each that has
//! left is replaced by a new one in its place. So there are never more than there were at first.

use std::fmt;
use std::mem;
use std::str::FromStr;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::hist::Hist;

use super::Fleet;
use crate::ns::ns;
use crate::truth::Truth;

/// How soon to look again whether guests are ready.
const READY_POLL: Duration = Duration::from_millis(2);
/// How soon to look again if nothing is due before a child ends.
const IDLE_POLL: Duration = Duration::from_secs(1);

/// How many guests are stopped and replaced in a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ChurnRate(f64);

impl ChurnRate {
    const MIN: f64 = 0.001;
    /// No host does more.
    const MAX: f64 = 10_000.0;

    /// A second.
    pub fn per_second(self) -> f64 {
        self.0
    }

    /// How long it is from the beginning to a turn; turns are counted from 1.
    fn until(self, turn: u64) -> Duration {
        Duration::try_from_secs_f64(turn as f64 / self.0).unwrap_or(Duration::MAX)
    }

    /// How many turns there are in a time.
    fn turns(self, time: Duration) -> u64 {
        (time.as_secs_f64() * self.0) as u64
    }
}

impl fmt::Display for ChurnRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

impl FromStr for ChurnRate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_suffix("/s").map(str::parse) {
            Some(Ok(rate)) if (Self::MIN..=Self::MAX).contains(&rate) => Ok(Self(rate)),
            _ => Err(format!(
                "it is not a number of guests a second from {} to {}, like 50/s",
                Self::MIN,
                Self::MAX
            )),
        }
    }
}

/// What has come of it.
#[derive(Clone, Debug)]
pub struct Churned {
    /// What was asked for.
    pub rate: ChurnRate,
    /// For how long.
    pub time: Duration,
    /// Guests whose turn to leave it was in that time.
    pub asked: u64,
    /// Of these those that have been told, or were done by themselves.
    pub told: u64,
    /// Guests that have left: from the order until the process was gone.
    pub stopped: Hist,
    /// Guests that have come for them: from the fork until they were ready.
    pub created: Hist,
    /// Guests that have been told to leave and have not left.
    pub leaving: u64,
    /// For how long one of them has not, in nanoseconds: the longest.
    pub longest_leaving_ns: Option<u64>,
    /// Guests that have left without there being another one that is ready.
    pub coming: u64,
}

/// Guests on their way out and in.
#[derive(Default)]
pub(super) struct Turnover {
    /// How fast, and since when; none while nobody is told to leave.
    schedule: Option<(ChurnRate, Instant)>,
    /// Turns that have been taken since then.
    taken: u64,
    /// The guest whose turn is next: they have it in the order of their places, over and over.
    next: u32,
    leaving: Vec<Leaving>,
    /// Guests that were done with their exits, and gone, before it was their turn.
    done: Vec<u32>,
    /// Places whose guests have left.
    free: Vec<u32>,
    /// Guests that have been forked and not let run yet, in the order of their numbers.
    coming: Vec<u32>,
    /// The numbers of guests that have left and whose cgroups could not be removed yet.
    uncleared: Vec<u32>,
    stopped: Hist,
    created: Hist,
}

/// A guest that has been told to leave.
struct Leaving {
    vm: u32,
    pid: u32,
    told: Instant,
}

impl Turnover {
    /// True if there are places to be filled.
    pub(super) fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    /// When the next guest is to be told.
    fn due(&self) -> Option<Instant> {
        let (rate, begun) = self.schedule?;
        begun.checked_add(rate.until(self.taken + 1))
    }
}

impl Fleet {
    /// From now on guests come and go, as far as [`Fleet::churn`] is called.
    pub fn begin_churn(&mut self, rate: ChurnRate) {
        self.turnover.schedule = Some((rate, Instant::now()));
        self.turnover.taken = 0;
    }

    /// Replaces guests that have left, and tells those to leave whose turn it is. Returns when that is to be done next:
    /// then, or when a child has ended. Does nothing before [`Fleet::begin_churn`].
    ///
    /// `left` is given what each vCPU of a guest did that is replaced. Forks, as [`Fleet::create`] does.
    pub fn churn(&mut self, mut left: impl FnMut(Truth) -> Result<()>) -> Result<Option<Instant>> {
        if self.turnover.schedule.is_none() {
            return Ok(None);
        }
        self.reap(false);
        self.admit_ready()?;
        let next = self.take_turns();
        while let Some(vm) = self.turnover.free.pop() {
            self.truth_of(vm, self.expected()).try_for_each(&mut left)?;
            self.replace(vm)?;
        }
        let poll = if self.turnover.coming.is_empty() { IDLE_POLL } else { READY_POLL };
        let look = Instant::now() + poll;
        Ok(Some(next.map_or(look, |next| next.min(look))))
    }

    /// No guest is told to leave any more. Returns what has come of it since the last time.
    pub fn end_churn(&mut self) -> Option<Churned> {
        let (rate, begun) = self.turnover.schedule?;
        self.reap(false);
        let (time, turnover) = (begun.elapsed(), &mut self.turnover);
        turnover.schedule = None;
        let longest = turnover.leaving.iter().map(|guest| guest.told.elapsed()).max();
        Some(Churned {
            rate,
            time,
            asked: rate.turns(time).max(turnover.taken),
            told: turnover.taken,
            stopped: mem::take(&mut turnover.stopped),
            created: mem::take(&mut turnover.created),
            leaving: turnover.leaving.len() as u64,
            longest_leaving_ns: longest.map(ns),
            coming: (turnover.free.len() + turnover.coming.len()) as u64,
        })
    }

    /// Takes note that a guest has ended; true if it had been told to leave.
    pub(super) fn note_left(&mut self, pid: u32) -> bool {
        let leaving = &mut self.turnover.leaving;
        if let Some(at) = leaving.iter().position(|guest| guest.pid == pid) {
            let Leaving { vm, told, .. } = leaving.swap_remove(at);
            self.turnover.free.push(vm);
            self.turnover.stopped.record(ns(told.elapsed()));
            return true;
        }
        if self.turnover.schedule.is_some() {
            self.turnover.done.extend(self.find(pid));
        }
        false
    }

    /// Lets guests run that are ready, as the others were: held to what they are held to. In the order of their numbers.
    pub(super) fn admit_ready(&mut self) -> Result<()> {
        let coming = self.turnover.coming.iter();
        let creations_ns = coming.map(|vm| self.page(*vm, 0).creation_ns.load(Relaxed));
        let creations_ns: Vec<u64> = creations_ns.take_while(|ns| *ns > 0).collect();
        let ready: Vec<u32> = self.turnover.coming.drain(..creations_ns.len()).collect();
        let Some(last) = ready.last() else { return Ok(()) };
        self.admit(ready.iter().copied())?;
        ready.iter().try_for_each(|vm| self.cgroup.limit_cpu_of(self.number(*vm)))?;
        self.shared.control().let_pass(self.number(*last) + 1);
        creations_ns.into_iter().for_each(|ns| self.turnover.created.record(ns));
        Ok(())
    }

    /// Tells guests to leave, as far as it is due; returns when the next one is, or none if it is not there yet.
    fn take_turns(&mut self) -> Option<Instant> {
        loop {
            let (vm, due) = (self.turnover.next, self.turnover.due()?);
            if Instant::now() < due {
                return Some(due);
            }
            if !self.is_there(vm) {
                return None;
            }
            self.turnover.taken += 1;
            self.turnover.next = (vm + 1) % self.created;
            match self.turnover.done.iter().position(|done| *done == vm) {
                Some(at) => {
                    self.turnover.done.swap_remove(at);
                    self.turnover.free.push(vm);
                }
                None => {
                    let pid = self.page(vm, 0).pid.load(Relaxed);
                    self.turnover.leaving.push(Leaving { vm, pid, told: Instant::now() });
                    self.tell_to_leave(vm);
                    self.end_linux(pid.cast_signed());
                }
            }
        }
    }

    /// True of a guest that is ready and has not been told to leave.
    fn is_there(&self, vm: u32) -> bool {
        let page = self.page(vm, 0);
        page.creation_ns.load(Relaxed) > 0 && page.stop.load(Relaxed) == 0
    }

    /// Begins to create a guest in the place of one that has left.
    fn replace(&mut self, vm: u32) -> Result<()> {
        self.turnover.uncleared.push(self.number(vm));
        self.turnover.uncleared.retain(|number| !self.cgroup.remove_guest(*number));
        let first = vm as usize * self.plan.vcpus as usize;
        (first..first + self.plan.vcpus as usize).for_each(|page| self.shared.clear_page(page));
        self.cgroup.add_guest(self.numbers)?;
        self.fork_guest(vm)?;
        self.turnover.coming.push(vm);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_guests_a_second() {
        for (text, rate) in [("50/s", 50.0), ("0.5/s", 0.5), ("10000/s", 10_000.0)] {
            assert_eq!(text.parse(), Ok(ChurnRate(rate)));
            assert_eq!(ChurnRate(rate).to_string(), text);
        }
        for text in ["", "50", "/s", "0/s", "-1/s", "nan/s", "inf/s", "10001/s", "50/m", "50%/s"] {
            assert!(text.parse::<ChurnRate>().is_err(), "{text}");
        }
    }

    #[test]
    fn turns_are_evenly_spread() {
        let rate = ChurnRate(8.0);
        assert_eq!(rate.until(1), Duration::from_millis(125));
        assert_eq!(rate.until(16), Duration::from_secs(2));
        assert_eq!(rate.turns(Duration::from_millis(124)), 0);
        assert_eq!(rate.turns(Duration::from_millis(2_001)), 16);
        assert_eq!(ChurnRate(0.001).until(u64::MAX), Duration::MAX);
    }
}
