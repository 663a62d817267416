//! What a guest does: the workloads by name, and what each needs from the virtual machine.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::exits::{ExitKind, Exits};
use crate::memory::Memory;

/// How often an `idle` guest ticks if nothing else is asked for.
const IDLE_DEFAULT_HZ: u32 = 100;
/// KVM keeps a guest's periodic timer from firing more often than every 200 µs
/// (`kvm.min_timer_period_us`): at a higher rate the ticks would not be what was asked for.
const IDLE_MAX_HZ: u32 = 5_000;
/// The period in which a `duty` guest burns its share.
const DUTY_PERIOD: Duration = Duration::from_millis(10);

/// What every vCPU of a guest does until it is stopped or, with exits, done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Burns CPU in ring 3 of long mode and never leaves guest mode of its own accord.
    Spin,
    /// Halts; a periodic timer wakes it.
    Idle {
        /// Ticks a second.
        hz: u32,
    },
    /// Burns a share of each 10 ms period, then halts until its timer.
    Duty {
        /// CPU time, in per cent of the period.
        percent: u32,
    },
    /// Leaves guest mode so many times, counted by kind, and then for good.
    Exits(Exits),
    /// Boots Linux, and does what that does.
    Linux,
}

/// The periodic timer of a workload that has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timer {
    /// From tick to tick.
    pub(crate) period: Duration,
    /// CPU time to burn in each period, before halting.
    pub(crate) burn: Duration,
}

impl Workload {
    /// What vCPUs do that have nothing else to do.
    pub fn idle() -> Self {
        Self::Idle { hz: IDLE_DEFAULT_HZ }
    }

    /// The timer this workload runs by.
    pub(crate) fn timer(self) -> Option<Timer> {
        match self {
            Self::Spin | Self::Exits(_) | Self::Linux => None,
            Self::Idle { hz } => {
                Some(Timer { period: Duration::from_secs(1) / hz, burn: Duration::ZERO })
            }
            Self::Duty { percent } => {
                Some(Timer { period: DUTY_PERIOD, burn: DUTY_PERIOD * percent / 100 })
            }
        }
    }

    /// True if guests need a local APIC, and nothing else of a PC.
    pub(crate) fn has_apic(self) -> bool {
        match self {
            Self::Spin | Self::Linux => false,
            Self::Idle { .. } | Self::Duty { .. } => true,
            Self::Exits(exits) => exits.count(ExitKind::Hlt) > 0,
        }
    }

    /// How many pages of its own memory each vCPU touches.
    pub(crate) fn fresh_pages(self) -> u32 {
        match self {
            Self::Spin | Self::Idle { .. } | Self::Duty { .. } | Self::Linux => 0,
            Self::Exits(exits) => exits.count(ExitKind::Pagefault),
        }
    }

    /// True if guests leave when they are done, without being told to.
    pub fn ends_by_itself(self) -> bool {
        matches!(self, Self::Exits(_))
    }
}

impl fmt::Display for Workload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spin => f.write_str("spin"),
            Self::Idle { hz } => write!(f, "idle={hz}"),
            Self::Duty { percent } => write!(f, "duty={percent}"),
            Self::Exits(exits) => write!(f, "exits={exits}"),
            Self::Linux => f.write_str("linux"),
        }
    }
}

impl FromStr for Workload {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        match (name, value) {
            ("spin", None) => Ok(Self::Spin),
            ("idle", None) => Ok(Self::idle()),
            ("idle", Some(hz)) => Ok(Self::Idle { hz: within(hz, 1, IDLE_MAX_HZ, "HZ")? }),
            ("duty", Some(percent)) => Ok(Self::Duty { percent: within(percent, 1, 100, "PCT")? }),
            ("exits", Some(exits)) => Ok(Self::Exits(exits.parse()?)),
            _ => Err("it is none of spin, idle, idle=HZ, duty=PCT, exits=KIND:COUNT, memory=SIZE"
                .to_owned()),
        }
    }
}

/// One of the things that a guest does at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// What its vCPUs do.
    Cpu(Workload),
    /// What its memory holds.
    Memory(Memory),
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("memory=") {
            Some(memory) => memory.parse().map(Self::Memory),
            None => text.parse().map(Self::Cpu),
        }
    }
}

/// A whole number in a range, or the sentence that says so.
pub(crate) fn within(text: &str, min: u32, max: u32, name: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(number) if (min..=max).contains(&number) => Ok(number),
        _ => Err(format!("{name} is a whole number from {min} to {max}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_workload_reads_back_as_it_is_written() {
        for text in ["spin", "idle=1", "idle=5000", "duty=1", "duty=100", "exits=msr:2,hlt:1@5"] {
            let workload: Workload = text.parse().expect(text);
            assert_eq!(workload.to_string(), text);
        }
        assert_eq!("idle".parse(), Ok(Workload::Idle { hz: 100 }));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in [
            "",
            "spun",
            "spin=1",
            "idle=0",
            "idle=5001",
            "idle=x",
            "idle=-1",
            "duty",
            "duty=0",
            "duty=101",
            "duty=",
            "duty=30%",
            "exits",
            "exits=",
        ] {
            assert!(text.parse::<Workload>().is_err(), "{text}");
        }
    }

    #[test]
    fn only_timed_workloads_have_a_timer() {
        assert_eq!(Workload::Spin.timer(), None);
        assert!(!Workload::Spin.has_apic());
        let duty = Workload::Duty { percent: 30 }.timer().expect("a timer");
        assert_eq!(duty.burn, Duration::from_millis(3));
        let idle = Workload::Idle { hz: 1_000 }.timer().expect("a timer");
        assert_eq!(idle.period, Duration::from_millis(1));
        assert_eq!(idle.burn, Duration::ZERO);
    }

    #[test]
    fn exits_need_a_local_apic_only_to_halt() {
        let exits = |text: &str| text.parse::<Workload>().expect(text);
        assert!(exits("exits=cpuid:1,hlt:1").has_apic());
        assert!(!exits("exits=cpuid:1,pagefault:7").has_apic());
        assert_eq!(exits("exits=cpuid:1,pagefault:7").fresh_pages(), 7);
    }
}
