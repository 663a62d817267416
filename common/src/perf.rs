//! Perf events of threads, and whether we may have any.

use std::io;
use std::mem;
use std::os::fd::{FromRawFd as _, OwnedFd};

use anyhow::Result;
use libbpf_rs::libbpf_sys;

use crate::session::host_cannot;

/// Tracepoints' programs are attached to perf events. "This host cannot" if the kernel lets us have none: Debian's, with
/// kernel.perf_event_paranoid at 3, asks for CAP_SYS_ADMIN where others are content with CAP_PERFMON.
pub fn check() -> Result<()> {
    let own_thread = 0;
    match open_software(libbpf_sys::PERF_COUNT_SW_DUMMY, 1, own_thread) {
        Err(err) if err.kind() == io::ErrorKind::PermissionDenied => Err(host_cannot(
            "not allowed to open perf events: run as root or with CAP_SYS_ADMIN, or set kernel.perf_event_paranoid to 2",
        )),
        // Whatever else is wrong will be told by whoever needs one.
        _ => Ok(()),
    }
}

/// Opens a software event of a thread, on any CPU, which overflows each time that it has happened so often.
pub fn open_software(config: u32, sample_period: u64, tid: i32) -> io::Result<OwnedFd> {
    // SAFETY: all zeroes is a valid perf_event_attr.
    let mut attr: libbpf_sys::perf_event_attr = unsafe { mem::zeroed() };
    attr.size = size_of_val(&attr) as u32;
    attr.type_ = libbpf_sys::PERF_TYPE_SOFTWARE;
    attr.config = config.into();
    attr.__bindgen_anon_1.sample_period = sample_period;
    let (any_cpu, no_group) = (-1, -1);
    let flags = libbpf_sys::PERF_FLAG_FD_CLOEXEC;
    // SAFETY: `attr` is as long as it says and outlives the call.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attr, tid, any_cpu, no_group, flags)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's; the kernel's are ints.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
