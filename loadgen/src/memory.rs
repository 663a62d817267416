//! The workload `memory=SIZE`: how many pages a guest has of which kind, and how often it rewrites them.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::image;
use crate::record::PAGE_SIZE;
use crate::size::{parse_size, size_text};
use crate::workload::within;

/// The most that can be asked for: every page ten times.
const MAX_REWRITE_PERCENT: u32 = 1_000;

/// What a page holds. The order is that in the guest's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageKind {
    /// The same as the page with this number in every other guest, and as no other page.
    Duplicate,
    /// Nothing but zeroes, written by the VMM: there is memory behind it.
    Zero,
    /// What no other page of any guest holds.
    Unique,
}

impl PageKind {
    /// How many there are.
    pub(crate) const NUMBER: usize = 3;
}

/// Something of pages, by what they hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ByKind {
    /// Equal in all guests: page by page, each different from all others.
    pub duplicate: u64,
    /// Nothing but zeroes.
    pub zero: u64,
    /// Different from all other pages.
    pub unique: u64,
}

impl ByKind {
    /// Of all kinds together.
    pub fn all(self) -> u64 {
        self.duplicate + self.zero + self.unique
    }
}

impl std::ops::AddAssign for ByKind {
    fn add_assign(&mut self, other: Self) {
        self.duplicate += other.duplicate;
        self.zero += other.zero;
        self.unique += other.unique;
    }
}

impl fmt::Display for ByKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} duplicate, {} zero, {} unique", self.duplicate, self.zero, self.unique)
    }
}

/// When so many per cent of a guest's pages are rewritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// Every second, evenly.
    PerSecond(u32),
    /// Each time somebody asks for it: see [`Fleet::rewrite`](crate::Fleet::rewrite).
    PerSignal(u32),
}

/// Memory of each guest that is filled before it starts, beside whatever its vCPUs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Whole pages, up to [`Memory::MAX_BYTES`].
    pub bytes: u64,
    /// Pages equal in all guests, in per cent.
    pub duplicate_percent: u32,
    /// Pages of zeroes, in per cent; together with the duplicate ones at most 100.
    pub zero_percent: u32,
    /// How many pages the guests rewrite, and when.
    pub rewrite: Option<Rewrite>,
}

impl Memory {
    /// What a guest's page tables reach.
    pub const MAX_BYTES: u64 = image::MAPPED_MEMORY;

    /// How many pages there are of each kind: shares are rounded down, the rest is unique.
    pub fn pages(&self) -> ByKind {
        let all = self.bytes / PAGE_SIZE as u64;
        let share = |percent: u32| all * u64::from(percent) / 100;
        let (duplicate, zero) = (share(self.duplicate_percent), share(self.zero_percent));
        ByKind { duplicate, zero, unique: all - duplicate - zero }
    }

    /// How many pages each guest rewrites when it is asked to; 0 if it does so by itself, or not at all.
    pub fn pages_per_signal(&self) -> u64 {
        match self.rewrite {
            Some(Rewrite::PerSignal(percent)) => self.pages().all() * u64::from(percent) / 100,
            Some(Rewrite::PerSecond(_)) | None => 0,
        }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, duplicate_percent, zero_percent, rewrite } = self;
        let size = size_text(*bytes);
        write!(f, "memory={size},duplicate={duplicate_percent},zero={zero_percent}")?;
        match rewrite {
            None => Ok(()),
            Some(Rewrite::PerSecond(percent)) => write!(f, ",rewrite={percent}/s"),
            Some(Rewrite::PerSignal(percent)) => write!(f, ",rewrite={percent}/signal"),
        }
    }
}

/// From what follows `memory=`.
impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let size = parts.next().unwrap_or_default();
        let bytes = parse_size(size, PAGE_SIZE as u64, Self::MAX_BYTES)
            .map_err(|why| format!("`{size}`: {why}"))?;
        let (mut duplicate, mut zero, mut rewrite) = (None, None, None);
        for part in parts {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let share = || within(value, 0, 100, "PCT");
            let twice = match name {
                "duplicate" => duplicate.replace(share()?).is_some(),
                "zero" => zero.replace(share()?).is_some(),
                "rewrite" => rewrite.replace(value.parse()?).is_some(),
                _ => {
                    return Err(format!(
                        "`{part}` is none of duplicate=PCT, zero=PCT, rewrite=PCT/s, rewrite=PCT/signal"
                    ));
                }
            };
            if twice {
                return Err(format!("`{name}` is given twice"));
            }
        }
        let (duplicate_percent, zero_percent) = (duplicate.unwrap_or(0), zero.unwrap_or(0));
        if duplicate_percent + zero_percent > 100 {
            let sum = duplicate_percent + zero_percent;
            return Err(format!("duplicate and zero pages are {sum} per cent together, above 100"));
        }
        let memory = Self { bytes, duplicate_percent, zero_percent, rewrite };
        match rewrite {
            Some(Rewrite::PerSignal(percent)) if memory.pages_per_signal() == 0 => {
                let pages = memory.pages().all();
                Err(format!("{percent} per cent of {pages} pages are less than one to rewrite"))
            }
            _ => Ok(memory),
        }
    }
}

impl FromStr for Rewrite {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (percent, of): (_, fn(u32) -> Self) = match text.split_once('/') {
            Some((percent, "s")) => (percent, Self::PerSecond),
            Some((percent, "signal")) => (percent, Self::PerSignal),
            _ => {
                return Err(format!("`rewrite={text}` is not rewrite=PCT/s or rewrite=PCT/signal"));
            }
        };
        within(percent, 1, MAX_REWRITE_PERCENT, "PCT").map(of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        for text in [
            "16M,duplicate=50,zero=0",
            "4K,duplicate=0,zero=100",
            "1G,duplicate=23,zero=77,rewrite=10/s",
            "4036K,duplicate=0,zero=0,rewrite=1000/signal",
        ] {
            let memory: Memory = text.parse().expect(text);
            assert_eq!(memory.to_string(), format!("memory={text}"));
        }
        let memory: Memory = "16384k,rewrite=7/s,zero=3".parse().expect("memory");
        assert_eq!(memory.to_string(), "memory=16M,duplicate=0,zero=3,rewrite=7/s");
    }

    #[test]
    fn shares_are_rounded_down_and_the_rest_is_unique() {
        let pages = |text: &str| text.parse::<Memory>().expect(text).pages();
        let kinds = |duplicate, zero, unique| ByKind { duplicate, zero, unique };
        assert_eq!(pages("16M,duplicate=50"), kinds(2_048, 0, 2_048));
        assert_eq!(pages("4036K,duplicate=40,zero=10"), kinds(403, 100, 506));
        assert_eq!(pages("4036K,duplicate=33,zero=67"), kinds(332, 676, 1));
        assert_eq!(pages("4K,duplicate=99"), kinds(0, 0, 1));
        assert_eq!(pages("1G,duplicate=100"), kinds(262_144, 0, 0));
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_reason() {
        for (text, reason) in [
            ("", "``: it is not a number of bytes, with or without K, M or G"),
            ("0", "`0`: it is not a multiple of 4K from 4K to 1G"),
            ("16M,zero", "PCT is a whole number from 0 to 100"),
            (
                "16M,half=50",
                "`half=50` is none of duplicate=PCT, zero=PCT, rewrite=PCT/s, rewrite=PCT/signal",
            ),
            ("16M,duplicate=-1", "PCT is a whole number from 0 to 100"),
            (
                "16M,duplicate=60,zero=41",
                "duplicate and zero pages are 101 per cent together, above 100",
            ),
            ("16M,rewrite=5", "`rewrite=5` is not rewrite=PCT/s or rewrite=PCT/signal"),
            ("16M,rewrite=5%/s", "PCT is a whole number from 1 to 1000"),
            ("16M,rewrite=5/s,rewrite=5/s", "`rewrite` is given twice"),
            ("8K,rewrite=49/signal", "49 per cent of 2 pages are less than one to rewrite"),
        ] {
            assert_eq!(text.parse::<Memory>(), Err(reason.to_owned()), "{text}");
        }
    }
}
