//! What vcpulag could not see, and how it says so.

use common::output::short_duration;

/// What could not be seen in one interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// vCPUs that found no room in a map.
    pub vcpus: u64,
    /// Waits that are in the times, but in no histogram.
    pub waits: u64,
    /// Events that found our program running on their CPU, so that the kernel did not run it again.
    pub missed: u64,
    /// Waits by the kernel's books, in no histogram: sched_switch did not show them.
    pub unseen: u64,
    /// Waiting time that is blamed on a kind of task, but on none by name.
    pub unnamed_ns: u64,
    /// Long waits that are counted, but were not told.
    pub untold: u64,
}

impl Losses {
    /// What was added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            vcpus: self.vcpus - earlier.vcpus,
            waits: self.waits - earlier.waits,
            missed: self.missed - earlier.missed,
            unseen: self.unseen - earlier.unseen,
            unnamed_ns: self.unnamed_ns - earlier.unnamed_ns,
            untold: self.untold - earlier.untold,
        }
    }

    /// Adds those of another interval.
    pub fn add(&mut self, other: &Self) {
        self.vcpus += other.vcpus;
        self.waits += other.waits;
        self.missed += other.missed;
        self.unseen += other.unseen;
        self.unnamed_ns += other.unnamed_ns;
        self.untold += other.untold;
    }

    /// What is in no row, or may be.
    pub fn lost(&self) -> u64 {
        self.vcpus + self.waits + self.missed
    }

    /// Sentences about what is missing.
    pub fn warnings(&self) -> Vec<String> {
        said([
            (self.vcpus, format!("lost {} vCPUs: no room for them", self.vcpus)),
            (self.waits, format!("lost {} waits in histograms: no room for them", self.waits)),
            (self.missed, format!("lost {} events: the kernel skipped them", self.missed)),
            (self.untold, format!("not shown {} waits: too many at once", self.untold)),
            (
                self.unnamed_ns,
                format!(
                    "{} of waits for others without names: no room for them",
                    short_duration(self.unnamed_ns)
                ),
            ),
        ])
    }

    /// Sentences about what is known less well.
    pub fn notes(&self) -> Vec<String> {
        said([(
            self.unseen,
            format!("from totals {} waits: sched_switch did not show them", self.unseen),
        )])
    }
}

/// The sentences whose figure is not 0.
fn said<const N: usize>(sentences: [(u64, String); N]) -> Vec<String> {
    sentences.into_iter().filter(|(count, _)| *count > 0).map(|(_, line)| line).collect()
}
