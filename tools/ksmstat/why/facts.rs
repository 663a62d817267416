//! What an answer rests on: figures of KSM, of a process, of the host. Plain data; nothing here asks the kernel.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::sysfs::{Counter, State};

/// All that was read.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The size of a page.
    pub page_bytes: u64,
    /// KSM over a while; `None`: this kernel has none.
    pub ksm: Option<Watched>,
    /// The process that is asked about.
    pub process: Option<Process>,
    /// All processes with mergeable memory together: read if no process is asked about, or if NUMA nodes matter.
    pub host: Option<Host>,
}

/// KSM's own figures from the beginning to the end of a while, and what happened in between.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// At the beginning.
    pub first: State,
    /// At the end.
    pub last: State,
    /// How long it was.
    pub length: Duration,
    /// The mean of pages_unshared, which was looked at many times: see `scan::Outcome`.
    pub unshared_mean: f64,
    /// The most that pages_unshared was.
    pub unshared_most: u64,
    /// How merges went, where the kernel tells.
    pub merges: Merges,
}

impl Watched {
    /// A counter at the end. Negative is none: see `pages_volatile_show`.
    pub fn count(&self, counter: Counter) -> u64 {
        known(&self.last, counter).unwrap_or(0)
    }

    /// A counter at the end, if this kernel has it.
    pub fn known(&self, counter: Counter) -> Option<u64> {
        known(&self.last, counter)
    }

    /// Whether this kernel has `prctl(PR_SET_MEMORY_MERGE)`, which systemd's `MemoryKSM=` uses: it came together
    /// with general_profit (Linux 6.4).
    pub fn has_prctl(&self) -> bool {
        self.known(Counter::GeneralProfit).is_some()
    }

    /// By how much a counter grew, if this kernel has it.
    pub fn growth(&self, counter: Counter) -> Option<u64> {
        let last = known(&self.last, counter)?;
        Some(last.saturating_sub(known(&self.first, counter)?))
    }
}

fn known(state: &State, counter: Counter) -> Option<u64> {
    state.get(counter).map(|number| u64::try_from(number).unwrap_or(0))
}

/// How attempts to merge ended: tracepoints `ksm_merge_with_ksm_page` and `ksm_merge_one_page` (Linux 6.3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Merges {
    /// Not known: the kernel has no such tracepoints, or else why they cannot be watched.
    Untold(Option<String>),
    /// They were watched.
    Seen(Attempts),
}

impl Default for Merges {
    fn default() -> Self {
        Self::Untold(None)
    }
}

/// Attempts to merge.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// Attempts that ended well, of all processes.
    pub merged: u64,
    /// Attempts that failed, of all processes, by error number.
    pub errors: BTreeMap<i32, u64>,
    /// How many went well and failed of the process that is asked about, if that is known.
    pub of_process: Option<(u64, u64)>,
}

impl Attempts {
    /// How many failed, of all processes.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }
}

/// A process.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Its PID.
    pub pid: i32,
    /// Its name, or its VM's.
    pub name: String,
    /// What its memory is for KSM.
    pub memory: Memory,
    /// Pages that ksmd knows of (ksm_rmap_items of /proc/PID/ksm_stat, Linux 6.1).
    pub scanned_pages: Option<u64>,
    /// Pages that are merged (/proc/PID/ksm_merging_pages, Linux 5.19).
    pub merged_pages: Option<u64>,
    /// Pages of zeroes that were replaced by the kernel's own (ksm_zero_pages of /proc/PID/ksm_stat, Linux 6.6).
    pub zero_pages: Option<u64>,
    /// Whether it asked for all its memory by prctl (ksm_merge_any of /proc/PID/ksm_stat, Linux 6.14).
    pub merge_any: Option<bool>,
}

/// All processes.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// How many were looked at.
    pub processes: u64,
    /// How many have mergeable memory.
    pub mergeable_processes: u64,
    /// Their memory.
    pub memory: Memory,
}

/// Memory by what it is for KSM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Marked mergeable (VM_MERGEABLE), by madvise or prctl.
    pub mergeable: Share,
    /// KSM would take it, and nobody asked.
    pub unasked: Share,
    /// KSM does not take it, whoever asks.
    pub refused: BTreeMap<Refusal, Share>,
    /// Transparent huge pages in mergeable memory.
    pub huge_bytes: u64,
    /// Pages of mergeable memory by NUMA node: read only if nodes are not merged across.
    pub node_pages: BTreeMap<u32, u64>,
}

impl Memory {
    /// What is in use of all that can be told apart.
    pub fn used_bytes(&self) -> u64 {
        let refused: u64 = self.refused.values().map(|share| share.used_bytes).sum();
        self.mergeable.used_bytes + self.unasked.used_bytes + refused
    }

    /// Adds another process's.
    pub fn add(&mut self, other: Self) {
        self.mergeable.add(other.mergeable);
        self.unasked.add(other.unasked);
        for (refusal, share) in other.refused {
            self.refused.entry(refusal).or_default().add(share);
        }
        self.huge_bytes += other.huge_bytes;
        for (node, pages) in other.node_pages {
            *self.node_pages.entry(node).or_default() += pages;
        }
    }
}

/// Some mappings.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// How many.
    pub mappings: u64,
    /// How much address space.
    pub mapped_bytes: u64,
    /// How much of it is in use: of private memory, its anonymous pages, as KSM sees no others.
    pub used_bytes: u64,
    /// How much of the largest is in use.
    pub largest_bytes: u64,
    /// What the largest is a mapping of; empty if of nothing with a name.
    pub largest_name: String,
}

impl Share {
    /// Adds others.
    pub fn add(&mut self, other: Self) {
        self.mappings += other.mappings;
        self.mapped_bytes += other.mapped_bytes;
        self.used_bytes += other.used_bytes;
        if other.largest_bytes > self.largest_bytes {
            self.largest_bytes = other.largest_bytes;
            self.largest_name = other.largest_name;
        }
    }
}

/// Why KSM does not take a mapping (mm/ksm.c: `vma_ksm_compatible`; before 6.4 `ksm_madvise`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refusal {
    /// VM_SHARED, VM_MAYSHARE: others may map the same pages.
    Shared,
    /// VM_HUGETLB: huge pages of hugetlbfs, which cannot be split.
    Hugetlb,
    /// VM_PFNMAP, VM_IO, VM_MIXEDMAP, VM_DONTEXPAND: a driver's or a device's.
    Device,
    /// VM_DROPPABLE (Linux 6.11): the kernel may drop it.
    Droppable,
}

impl Refusal {
    /// Its name, for programs.
    pub fn id(self) -> &'static str {
        match self {
            Self::Shared => "shared",
            Self::Hugetlb => "hugetlb",
            Self::Device => "device",
            Self::Droppable => "droppable",
        }
    }
}
