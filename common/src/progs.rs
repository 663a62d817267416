//! What the kernel knows of loaded programs.

use std::io;
use std::mem;
use std::os::fd::{AsFd as _, AsRawFd as _};

use anyhow::{Context as _, Result};
use libbpf_rs::{Object, libbpf_sys};

/// How often an event found one of the programs running on its CPU already, so that it was not run: events lost
/// before anybody could count them. Linux 5.12 and later count; before it is 0.
pub fn misses(object: &Object) -> Result<u64> {
    let loaded = object.progs().filter(|prog| prog.autoload());
    loaded.map(|prog| recursion_misses(prog.as_fd().as_raw_fd())).sum()
}

fn recursion_misses(fd: i32) -> Result<u64> {
    // SAFETY: all zeroes is a valid bpf_prog_info: it asks for nothing beyond what fits.
    let mut info: libbpf_sys::bpf_prog_info = unsafe { mem::zeroed() };
    let mut size = u32::try_from(size_of_val(&info))?;
    // SAFETY: `info` has `size` bytes to be written, and no pointers that the kernel would follow.
    let result = unsafe { libbpf_sys::bpf_prog_get_info_by_fd(fd, &raw mut info, &raw mut size) };
    match result {
        0 => Ok(info.recursion_misses),
        errno => Err(io::Error::from_raw_os_error(-errno)).context("failed to ask about a program"),
    }
}
