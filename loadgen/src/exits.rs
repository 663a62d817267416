//! Exits by kind: what an `exits` guest is to cause, how often, and how that is written on the command line.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::workload::within;

/// The most exits of one kind that can be asked for.
const MAX_COUNT: u32 = 1_000_000_000;
/// The highest rate that can be asked for, a second: an exit takes longer than a microsecond.
const MAX_RATE_HZ: u32 = 1_000_000;

/// What makes a guest leave guest mode. The order is that of the records in the vCPU's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ExitKind {
    /// A byte to or from a port that nobody handles, written first, then in turn.
    Pio,
    /// Four bytes to or from an address without memory, written first, then in turn.
    Mmio,
    /// CPUID.
    Cpuid,
    /// RDMSR and WRMSR of a register that KVM never lets a guest have for itself, read first, then in turn.
    Msr,
    /// VMCALL or VMMCALL, with a hypercall that does nothing.
    Hypercall,
    /// HLT; the timer of the local APIC ends it.
    Hlt,
    /// The first touch, a write, of a page of the guest's own memory.
    Pagefault,
}

impl ExitKind {
    /// How many there are.
    pub(crate) const NUMBER: usize = 7;

    /// All of them, in order.
    pub const ALL: [Self; Self::NUMBER] = [
        Self::Pio,
        Self::Mmio,
        Self::Cpuid,
        Self::Msr,
        Self::Hypercall,
        Self::Hlt,
        Self::Pagefault,
    ];

    /// Its name on the command line and in the truth.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pio => "pio",
            Self::Mmio => "mmio",
            Self::Cpuid => "cpuid",
            Self::Msr => "msr",
            Self::Hypercall => "hypercall",
            Self::Hlt => "hlt",
            Self::Pagefault => "pagefault",
        }
    }

    /// True if the guest leaves KVM, too: the VMM has to answer.
    fn reaches_the_vmm(self) -> bool {
        matches!(self, Self::Pio | Self::Mmio)
    }
}

impl FromStr for ExitKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("`{text}` is none of the kinds of exits: {names}")
        })
    }
}

/// So many exits of one kind, from every vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCount {
    /// Of which kind.
    pub kind: ExitKind,
    /// How many: no more and no less.
    pub count: u32,
    /// How many a second; as fast as possible if none.
    pub rate_hz: Option<u32>,
}

/// The exits every vCPU is to cause, in the order they were asked for; each kind at most once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Exits {
    counts: [Option<ExitCount>; ExitKind::NUMBER],
}

impl Exits {
    /// What is asked for of each kind.
    pub fn iter(&self) -> impl Iterator<Item = ExitCount> {
        self.counts.into_iter().flatten()
    }

    /// How many are to be of this kind.
    pub fn count(&self, kind: ExitKind) -> u32 {
        self.iter().find(|exit| exit.kind == kind).map_or(0, |exit| exit.count)
    }

    /// True if some go to userspace, so that `--vmm-sleep` has something to do.
    pub fn reach_the_vmm(&self) -> bool {
        self.iter().any(|exit| exit.kind.reaches_the_vmm())
    }

    /// Adds one kind, or says that it is there already.
    fn push(&mut self, exit: ExitCount) -> Result<(), String> {
        if self.count(exit.kind) > 0 {
            return Err(format!("`{}` is given twice", exit.kind.name()));
        }
        // There is a place for each kind.
        if let Some(free) = self.counts.iter_mut().find(|place| place.is_none()) {
            *free = Some(exit);
        }
        Ok(())
    }
}

impl ExitCount {
    /// From one exit to the next, if they are paced.
    pub(crate) fn period(&self) -> Option<Duration> {
        self.rate_hz.map(|rate_hz| Duration::from_secs(1) / rate_hz)
    }
}

impl fmt::Display for ExitCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind.name(), self.count)?;
        self.rate_hz.map_or(Ok(()), |rate_hz| write!(f, "@{rate_hz}"))
    }
}

impl FromStr for ExitCount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((kind, numbers)) = text.split_once(':') else {
            return Err(format!("`{text}` is not KIND:COUNT or KIND:COUNT@RATE"));
        };
        let (count, rate_hz) = match numbers.split_once('@') {
            Some((count, rate)) => (count, Some(within(rate, 1, MAX_RATE_HZ, "RATE")?)),
            None => (numbers, None),
        };
        Ok(Self { kind: kind.parse()?, count: within(count, 1, MAX_COUNT, "COUNT")?, rate_hz })
    }
}

impl fmt::Display for Exits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, exit) in self.iter().enumerate() {
            let separator = if index == 0 { "" } else { "," };
            write!(f, "{separator}{exit}")?;
        }
        Ok(())
    }
}

impl FromStr for Exits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut exits = Self::default();
        text.split(',').try_for_each(|exit| exits.push(exit.parse()?))?;
        Ok(exits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let all = "pio:1,mmio:2,cpuid:3,msr:4,hypercall:5,hlt:6@1000000,pagefault:1000000000";
        for text in ["cpuid:1009", "hlt:1@1", "mmio:251@100,cpuid:1009,pio:503", all] {
            let exits: Exits = text.parse().expect(text);
            assert_eq!(exits.to_string(), text);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "`` is not KIND:COUNT or KIND:COUNT@RATE"),
            ("pio", "`pio` is not KIND:COUNT or KIND:COUNT@RATE"),
            ("pio:1,", "`` is not KIND:COUNT or KIND:COUNT@RATE"),
            (
                "nmi:1",
                "`nmi` is none of the kinds of exits: pio, mmio, cpuid, msr, hypercall, hlt, pagefault",
            ),
            ("pio:0", "COUNT is a whole number from 1 to 1000000000"),
            ("pio:1000000001", "COUNT is a whole number from 1 to 1000000000"),
            ("pio:", "COUNT is a whole number from 1 to 1000000000"),
            ("pio:5@0", "RATE is a whole number from 1 to 1000000"),
            ("pio:5@", "RATE is a whole number from 1 to 1000000"),
            ("pio:5,msr:1,pio:5", "`pio` is given twice"),
        ] {
            assert_eq!(text.parse::<Exits>(), Err(reason.to_owned()), "{text}");
        }
    }

    #[test]
    fn the_order_of_all_is_that_of_the_numbers() {
        for (index, kind) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index);
        }
    }

    #[test]
    fn only_pio_and_mmio_reach_the_vmm() {
        let reaches = |text: &str| text.parse::<Exits>().expect(text).reach_the_vmm();
        assert!(reaches("cpuid:1,pio:1") && reaches("mmio:1"));
        assert!(!reaches("cpuid:1,msr:1,hypercall:1,hlt:1,pagefault:1"));
    }
}
