//! KSM's own counters and settings: the files of /sys/kernel/mm/ksm, on every kernel, with their meaning.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};
use common::session::host_cannot;

/// Where the files are; not there if the kernel has no KSM.
pub const DIRECTORY: &str = "/sys/kernel/mm/ksm";

/// What a counter's number is a number of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Pages of memory.
    Pages,
    /// Bytes.
    Bytes,
    /// Times, or things other than pages.
    Count,
    /// Milliseconds.
    Millis,
    /// Seconds.
    Seconds,
    /// Hundredths of a CPU.
    Percent,
    /// 0 is no, 1 is yes; `run` has 2 as well.
    Switch,
    /// One of a few words.
    Word,
}

impl Unit {
    /// How it is written after a number.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pages => "pages",
            Self::Bytes => "bytes",
            Self::Millis => "ms",
            Self::Seconds => "s",
            Self::Percent => "%",
            Self::Count | Self::Switch | Self::Word => "",
        }
    }
}

/// Which counters belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// What is merged now.
    Merged,
    /// What is not.
    Unmerged,
    /// What ksmd has done.
    Scanned,
    /// What somebody has set.
    Setting,
    /// What somebody has set for the kernel's advisor.
    Advisor,
}

/// What is known of a counter.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// Its file.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// What it is shown with.
    pub group: Group,
    /// The first Linux that had it.
    pub since: &'static str,
    /// What it means.
    pub meaning: &'static str,
}

macro_rules! counters {
    ($($variant:ident $name:literal $unit:ident $group:ident $since:literal $meaning:literal)*) => {
        /// A file of /sys/kernel/mm/ksm.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter {
            $(#[doc = $meaning] $variant,)*
        }

        impl Counter {
            /// All of them, in the order in which they are shown.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$variant),*];

            /// What is known of it.
            pub fn facts(self) -> Facts {
                match self {
                    $(Self::$variant => Facts {
                        name: $name,
                        unit: Unit::$unit,
                        group: Group::$group,
                        since: $since,
                        meaning: $meaning,
                    },)*
                }
            }
        }
    };
}

counters! {
    PagesShared "pages_shared" Pages Merged "2.6.32"
        "KSM pages: what is left of merged ones"
    PagesSharing "pages_sharing" Pages Merged "2.6.32"
        "further places where KSM pages are mapped: what is saved"
    KsmZeroPages "ksm_zero_pages" Pages Merged "6.6"
        "pages of zeroes replaced by the kernel's own"
    GeneralProfit "general_profit" Bytes Merged "6.4"
        "what is saved, less what KSM's bookkeeping takes"
    PagesUnshared "pages_unshared" Pages Unmerged "2.6.32"
        "scanned, without a twin so far"
    PagesVolatile "pages_volatile" Pages Unmerged "2.6.32"
        "changed from scan to scan, or not scanned often enough to tell"
    PagesSkipped "pages_skipped" Pages Scanned "6.7"
        "not looked at by smart scan, as earlier looks were in vain"
    PagesScanned "pages_scanned" Pages Scanned "6.6"
        "looked at"
    FullScans "full_scans" Count Scanned "2.6.32"
        "times that all mergeable memory was scanned"
    StableNodeChains "stable_node_chains" Count Scanned "4.13"
        "contents that have more than one KSM page, by max_page_sharing"
    StableNodeDups "stable_node_dups" Count Scanned "4.13"
        "KSM pages of such contents"
    Run "run" Switch Setting "2.6.32"
        "0: ksmd stopped, 1: it runs, 2: stopped, and all un-merged"
    PagesToScan "pages_to_scan" Pages Setting "2.6.32"
        "scanned in a batch, before ksmd sleeps"
    SleepMillisecs "sleep_millisecs" Millis Setting "2.6.32"
        "how long ksmd sleeps between batches"
    MergeAcrossNodes "merge_across_nodes" Switch Setting "3.9"
        "merge pages of different NUMA nodes"
    MaxPageSharing "max_page_sharing" Count Setting "4.13"
        "the most places where one KSM page is mapped"
    StableNodeChainsPruneMillisecs "stable_node_chains_prune_millisecs" Millis Setting "4.13"
        "how often chains are searched for KSM pages that are gone"
    UseZeroPages "use_zero_pages" Switch Setting "4.12"
        "replace pages of zeroes by the kernel's own"
    SmartScan "smart_scan" Switch Setting "6.7"
        "skip pages that have often been looked at in vain"
    AdvisorMode "advisor_mode" Word Advisor "6.8"
        "who sets pages_to_scan: none (the user), or scan-time (the kernel)"
    AdvisorTargetScanTime "advisor_target_scan_time" Seconds Advisor "6.8"
        "how long a full scan shall take"
    AdvisorMaxCpu "advisor_max_cpu" Percent Advisor "6.8"
        "the most of a CPU that ksmd shall take"
    AdvisorMinPagesToScan "advisor_min_pages_to_scan" Pages Advisor "6.8"
        "the least that the advisor sets"
    AdvisorMaxPagesToScan "advisor_max_pages_to_scan" Pages Advisor "6.8"
        "the most that the advisor sets"
}

/// KSM's counters and settings at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    numbers: [Option<i64>; Counter::ALL.len()],
    advisor_mode: Option<String>,
}

impl State {
    /// Reads them all. "This host cannot" if the kernel has no KSM.
    pub fn read() -> Result<Self> {
        if !Path::new(DIRECTORY).exists() {
            return Err(host_cannot(format!(
                "`{DIRECTORY}` is not there: boot a kernel with CONFIG_KSM=y"
            )));
        }
        let mut state = Self::default();
        for counter in Counter::ALL {
            let path = Path::new(DIRECTORY).join(counter.facts().name);
            let text = match fs::read_to_string(&path) {
                Err(err) if err.kind() == io::ErrorKind::NotFound => continue,
                read => read.with_context(|| format!("failed to read `{}`", path.display()))?,
            };
            state
                .set(counter, text.trim())
                .with_context(|| format!("failed to parse `{}`", path.display()))?;
        }
        Ok(state)
    }

    /// So many of each, and no others.
    #[cfg(test)]
    pub fn of(counters: &[(Counter, i64)]) -> Self {
        let mut state = Self::default();
        for &(counter, number) in counters {
            state.numbers[counter as usize] = Some(number);
        }
        state
    }

    /// Its number; `None` if this kernel has no such counter, or it is no number.
    pub fn get(&self, counter: Counter) -> Option<i64> {
        self.numbers[counter as usize]
    }

    /// Places where KSM pages are mapped: one for each KSM page, and those that share it.
    pub fn merged_pages(&self) -> i64 {
        let pages = [Counter::PagesShared, Counter::PagesSharing].map(|counter| self.get(counter));
        pages.into_iter().flatten().sum()
    }

    /// Pages that need not exist: those that share one, and those of zeroes.
    pub fn saved_pages(&self) -> u64 {
        let pages = [Counter::PagesSharing, Counter::KsmZeroPages].map(|counter| self.get(counter));
        pages.into_iter().flatten().filter_map(|pages| u64::try_from(pages).ok()).sum()
    }

    /// The advisor's mode: `none` or `scan-time`.
    pub fn advisor_mode(&self) -> Option<&str> {
        self.advisor_mode.as_deref()
    }

    /// Sets it to what its file says.
    pub fn set(&mut self, counter: Counter, text: &str) -> Result<()> {
        match counter.facts().unit {
            Unit::Word => {
                let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
                self.advisor_mode = Some(chosen.context("none is chosen")?.0.to_owned());
            }
            _ => self.numbers[counter as usize] = Some(text.parse()?),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stand_in_their_order() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index);
        }
    }

    #[test]
    fn this_kernels_files_are_all_known() {
        for entry in fs::read_dir(DIRECTORY).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(Counter::ALL.iter().any(|counter| counter.facts().name == name), "{name}");
        }
    }

    #[test]
    fn the_chosen_word_is_in_brackets() {
        let mut state = State::default();
        state.set(Counter::AdvisorMode, "none [scan-time]").unwrap();
        state.set(Counter::GeneralProfit, "-4096").unwrap();
        assert_eq!(state.advisor_mode(), Some("scan-time"));
        assert_eq!(state.get(Counter::GeneralProfit), Some(-4_096));
        assert_eq!(state.get(Counter::PagesShared), None);
        assert!(state.set(Counter::AdvisorMode, "none").is_err());
        assert!(state.set(Counter::Run, "x").is_err());
    }
}
