//! What an exit's reason does not say: which port, address, MSR, hypercall, or how a halt ended.

use std::fmt;

use common::exits::{hypercall_name, msr_name};

/// One of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Detail {
    /// An access to an I/O port.
    Port {
        /// The port.
        port: u16,
        /// OUT, not IN.
        out: bool,
    },
    /// An access to memory that is none.
    Mmio {
        /// The guest-physical address.
        gpa: u64,
        /// A write, not a read.
        write: bool,
    },
    /// An access to a model-specific register.
    Msr {
        /// Its number.
        index: u32,
        /// A write, not a read.
        write: bool,
    },
    /// A hypercall.
    Hypercall(u32),
    /// A halt that ended with a sleep.
    Slept,
    /// A halt that ended while KVM polled.
    Polled,
    /// The number of a user stack.
    Stack(u32),
}

const SHIFT: u32 = 56;

impl Detail {
    /// From `enum detail` of bpf/kvmexits.h; `None` is 0 or what is not known there.
    pub fn from_raw(raw: u64) -> Option<Self> {
        let value = raw & ((1 << SHIFT) - 1);
        let low = value as u32;
        Some(match raw >> SHIFT {
            1 => Self::Port { port: low as u16, out: low & 1 << 16 != 0 },
            2 => Self::Mmio { gpa: value & !(1 << 55), write: value & 1 << 55 != 0 },
            3 => Self::Msr { index: low, write: value & 1 << 32 != 0 },
            4 => Self::Hypercall(low),
            5 if low == 1 => Self::Slept,
            5 if low == 2 => Self::Polled,
            6 => Self::Stack(low),
            _ => return None,
        })
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Port { port, out } => {
                write!(f, "{} port {port:#x}", if out { "out" } else { "in" })
            }
            Self::Mmio { gpa, write } => {
                write!(f, "{} {gpa:#x}", if write { "write" } else { "read" })
            }
            Self::Msr { index, write } => {
                let access = if write { "write" } else { "read" };
                match msr_name(index) {
                    Some(name) => write!(f, "{access} {name}"),
                    None => write!(f, "{access} MSR {index:#x}"),
                }
            }
            Self::Hypercall(nr) => match hypercall_name(nr.into()) {
                Some(name) => f.write_str(name),
                None => write!(f, "hypercall {nr}"),
            },
            Self::Slept => f.write_str("slept"),
            Self::Polled => f.write_str("polled"),
            Self::Stack(id) => write!(f, "stack {id}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_read_as_they_are_written() {
        for (raw, text) in [
            (1 << 56 | 0x3f8, "in port 0x3f8"),
            (1 << 56 | 1 << 16 | 0xcf8, "out port 0xcf8"),
            (2 << 56 | 0xfee0_00b0, "read 0xfee000b0"),
            (2 << 56 | 1 << 55 | 0xf_ffff_ffff_f000, "write 0xffffffffff000"),
            (3 << 56 | 0x1234_5678, "read MSR 0x12345678"),
            (4 << 56 | 7777, "hypercall 7777"),
            (5 << 56 | 1, "slept"),
            (5 << 56 | 2, "polled"),
        ] {
            let detail = Detail::from_raw(raw).unwrap();
            assert_eq!(detail.to_string(), text);
        }
        assert_eq!(Detail::from_raw(0), None);
        assert_eq!(Detail::from_raw(5 << 56), None);
        assert_eq!(Detail::from_raw(99 << 56), None);
    }
}
