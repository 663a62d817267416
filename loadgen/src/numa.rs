//! A NUMA node: its CPUs, and how guests' memory is bound to it.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::ptr::NonNull;

use anyhow::Result;
use common::args::CpuList;
use common::session::{host_cannot, usage};

use crate::controls::Controls;
use crate::process;

/// Bits of a mask that has a bit for every node.
const MASK_BITS: usize = Controls::MAX_NUMA_NODE as usize + 1;
const WORD_BITS: usize = u64::BITS as usize;

/// A node that this host has, with memory that we may have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Node(u32);

impl Node {
    /// Refuses a node that there is none of (a usage error), or none of whose memory this process may have.
    pub(crate) fn find(number: u32) -> Result<Self> {
        const NODES: &str = "/sys/devices/system/node";
        let online = fs::read_to_string(format!("{NODES}/online")).map_err(|_| {
            host_cannot(
                "this kernel knows no NUMA nodes (CONFIG_NUMA): leave out --numa-node, use --cpus",
            )
        })?;
        let node = Self(number);
        if !node.dir().exists() {
            let online = online.trim();
            return Err(usage(format!("there is no NUMA node {number}: this host has {online}")));
        }
        // Only the kernel knows what has memory and is in the cpuset: a child tries.
        process::try_in_child(|| node.bind_thread()).map_err(|e| {
            host_cannot(format!(
                "memory cannot be bound to NUMA node {number}: {e}: it has none, or it is not in this process's \
                 cpuset (cpuset.mems): name another one"
            ))
        })?;
        Ok(node)
    }

    /// Its CPUs that are online; none if it has only memory.
    pub(crate) fn cpus(self) -> CpuList {
        let list = fs::read_to_string(self.dir().join("cpulist")).unwrap_or_default();
        list.trim().parse().unwrap_or(CpuList(Vec::new()))
    }

    /// From now on the calling thread, and all that it starts, get memory from this node only: pages that nobody has
    /// touched before, and what the kernel allocates for them.
    pub(crate) fn bind_thread(self) -> io::Result<()> {
        let mask = self.mask();
        // SAFETY: the kernel reads as many bits as the mask has: one less than it is told (get_nodes of mm/mempolicy.c).
        let result = unsafe {
            libc::syscall(libc::SYS_set_mempolicy, libc::MPOL_BIND, mask.as_ptr(), MASK_BITS + 1)
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The same for a shared mapping, whoever touches it.
    pub(crate) fn bind_mapping(self, memory: NonNull<u8>, size: usize) -> io::Result<()> {
        let mask = self.mask();
        // SAFETY: as above; where its memory comes from changes nothing in the mapping.
        let result = unsafe {
            libc::syscall(
                libc::SYS_mbind,
                memory.as_ptr(),
                size,
                libc::MPOL_BIND,
                mask.as_ptr(),
                MASK_BITS + 1,
                0,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Its number.
    pub(crate) fn number(self) -> u32 {
        self.0
    }

    fn mask(self) -> [u64; MASK_BITS / WORD_BITS] {
        let mut words = [0; MASK_BITS / WORD_BITS];
        words[self.0 as usize / WORD_BITS] |= 1 << (self.0 as usize % WORD_BITS);
        words
    }

    fn dir(self) -> PathBuf {
        format!("/sys/devices/system/node/node{}", self.0).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_has_one_bit() {
        assert_eq!(Node(0).mask()[0], 1);
        let mask = Node(1_023).mask();
        assert_eq!((mask[15], mask.iter().map(|word| word.count_ones()).sum()), (1 << 63, 1));
    }
}
