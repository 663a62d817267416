//! The CPUs that guests are bound to: which they are, the mask by which the kernel knows them, and whether we may have
//! them all.

use std::fs;
use std::io;

use anyhow::{Context as _, Result};
use common::args::CpuList;
use common::session::{host_cannot, usage};

use crate::controls::Controls;
use crate::numa::Node;

/// As many CPUs as a [`CpuList`] can name: no kernel's mask is longer.
const MAX_CPUS: usize = 1 << 16;
const WORD_BITS: usize = u64::BITS as usize;

/// Where guests run.
pub(crate) struct Placement {
    /// What all their threads are bound to.
    all: Option<CpuMask>,
    /// What one vCPU after the other is bound to beyond that, in turn.
    each: Vec<CpuMask>,
}

impl Placement {
    /// From what is asked for; refuses CPUs that cannot be had.
    pub(crate) fn new(controls: &Controls, node: Option<Node>) -> Result<Self> {
        let allowed = CpuMask::current().context("failed to get this process's CPUs")?;
        let cpus = match (&controls.cpus, node) {
            (None, None) => None,
            (Some(cpus), None) => Some(cpus.clone()),
            // A node of memory alone says nothing of CPUs.
            (cpus, Some(node)) if node.cpus().0.is_empty() => cpus.clone(),
            (Some(cpus), Some(node)) => Some(within(cpus, node)?),
            (None, Some(node)) => Some(of_node(node, &allowed)?),
        };
        cpus.as_ref().map_or(Ok(()), check)?;
        let each = match (controls.pin, &cpus) {
            (false, _) => Vec::new(),
            (true, Some(cpus)) => cpus.0.iter().copied().map(CpuMask::of_one).collect(),
            (true, None) => allowed.cpus().map(CpuMask::of_one).collect(),
        };
        Ok(Self { all: cpus.as_ref().map(CpuMask::new), each })
    }

    /// Binds the calling thread to what all guests are bound to, and all that it starts from now on.
    pub(crate) fn bind(&self) -> io::Result<()> {
        self.all.as_ref().map_or(Ok(()), CpuMask::bind)
    }

    /// Binds the calling thread, which is this vCPU of all of the fleet's, to a CPU of its own if it is to have one.
    pub(crate) fn pin(&self, vcpu: u32) -> io::Result<()> {
        match self.each.as_slice() {
            [] => Ok(()),
            each => each[vcpu as usize % each.len()].bind(),
        }
    }
}

/// Refuses CPUs that a node does not have.
fn within(cpus: &CpuList, node: Node) -> Result<CpuList> {
    let own = node.cpus();
    match cpus.0.iter().find(|cpu| !own.0.contains(cpu)) {
        None => Ok(cpus.clone()),
        Some(cpu) => Err(usage(format!(
            "CPU {cpu} of --cpus is not on NUMA node {}: name CPUs of that node, or leave out one of the two",
            node.number()
        ))),
    }
}

/// The CPUs of a node that this process may have.
fn of_node(node: Node, allowed: &CpuMask) -> Result<CpuList> {
    let mut cpus = node.cpus();
    cpus.0.retain(|cpu| allowed.has(*cpu));
    if cpus.0.is_empty() {
        return Err(host_cannot(format!(
            "NUMA node {} has no CPU that this process may run on: name another node",
            node.number()
        )));
    }
    Ok(cpus)
}

/// CPUs as sched_setaffinity(2) takes them, one bit each.
struct CpuMask(Vec<u64>);

impl CpuMask {
    /// The mask of these CPUs.
    fn new(cpus: &CpuList) -> Self {
        let last = cpus.0.last().copied().unwrap_or_default();
        let mut words = vec![0; last / WORD_BITS + 1];
        for cpu in &cpus.0 {
            words[cpu / WORD_BITS] |= 1 << (cpu % WORD_BITS);
        }
        Self(words)
    }

    fn of_one(cpu: usize) -> Self {
        Self::new(&CpuList(vec![cpu]))
    }

    /// Binds the calling thread, and all that it starts from now on. The kernel leaves out those that are offline
    /// or not in the cpuset, and fails only if none is left.
    fn bind(&self) -> io::Result<()> {
        // SAFETY: the kernel reads as many bytes as the mask has.
        match unsafe { libc::sched_setaffinity(0, size_of_val(&*self.0), self.0.as_ptr().cast()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// What the calling thread is bound to.
    fn current() -> io::Result<Self> {
        let mut words = vec![0_u64; MAX_CPUS / WORD_BITS];
        // SAFETY: the kernel writes no more bytes than the mask has.
        let result =
            unsafe { libc::sched_getaffinity(0, size_of_val(&*words), words.as_mut_ptr().cast()) };
        match result {
            0 => Ok(Self(words)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Their numbers.
    fn cpus(&self) -> impl Iterator<Item = usize> {
        (0..self.0.len() * WORD_BITS).filter(|cpu| self.has(*cpu))
    }

    fn has(&self, cpu: usize) -> bool {
        self.0.get(cpu / WORD_BITS).is_some_and(|word| word >> (cpu % WORD_BITS) & 1 == 1)
    }
}

/// Refuses CPUs that there are none of (a usage error), or that this process may not have.
fn check(cpus: &CpuList) -> Result<()> {
    const POSSIBLE: &str = "/sys/devices/system/cpu/possible";
    let possible = fs::read_to_string(POSSIBLE).unwrap_or_default();
    // Whatever the kernel does not tell is found out below.
    if let Some(last) =
        possible.trim().parse().ok().and_then(|list: CpuList| list.0.last().copied())
    {
        cpus.check(last + 1)?;
    }
    // Only the kernel knows what is online and in the cpuset: see what it makes of the mask.
    let before = CpuMask::current().context("failed to get this process's CPUs")?;
    let granted = CpuMask::new(cpus).bind().and_then(|()| CpuMask::current());
    before.bind().context("failed to set this process's CPUs back")?;
    match cpus.0.iter().find(|cpu| !granted.as_ref().is_ok_and(|mask| mask.has(**cpu))) {
        None => Ok(()),
        Some(cpu) => Err(host_cannot(format!(
            "guests cannot be bound to CPU {cpu}: it is offline or not in this process's cpuset: take it online \
             (/sys/devices/system/cpu/cpu{cpu}/online), or leave it out"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> CpuList {
        text.parse().expect(text)
    }

    #[test]
    fn a_mask_has_a_bit_for_each_cpu() {
        let mask = CpuMask::new(&list("0-1,63-64,200"));
        assert_eq!(mask.0, [1 << 63 | 3, 1, 0, 1 << 8]);
        assert!(mask.has(63) && mask.has(64) && mask.has(200));
        assert!(!mask.has(2) && !mask.has(201) && !mask.has(60_000));
        assert_eq!(mask.cpus().collect::<Vec<_>>(), [0, 1, 63, 64, 200]);
    }

    #[test]
    fn cpus_that_are_not_there_are_refused_and_nobody_stays_bound() {
        let before = CpuMask::current().expect("a mask").0;
        let first = (0..MAX_CPUS).find(|cpu| CpuMask(before.clone()).has(*cpu)).expect("a CPU");
        check(&list(&first.to_string())).expect("a CPU that we run on");
        assert_eq!(CpuMask::current().expect("a mask").0, before);
        assert!(check(&list("65535")).is_err());
    }
}
