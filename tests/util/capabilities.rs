//! A program run by nobody, with some capabilities of root's and no others, as systemd's AmbientCapabilities= and setpriv(1) do it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::TempDir;

/// A capability: its number, and its name without `CAP_` (include/uapi/linux/capability.h).
pub type Capability = (u32, &'static str);

pub const DAC_READ_SEARCH: Capability = (2, "DAC_READ_SEARCH");
pub const SYS_PTRACE: Capability = (19, "SYS_PTRACE");
pub const SYS_RESOURCE: Capability = (24, "SYS_RESOURCE");
pub const PERFMON: Capability = (38, "PERFMON");
pub const BPF: Capability = (39, "BPF");

const NOBODY: u32 = 65_534;

/// A copy of a program that nobody may execute, wherever it was built.
pub struct Copy {
    _dir: TempDir,
    path: PathBuf,
}

impl Copy {
    pub fn of(program: &str) -> Self {
        let name = Path::new(program).file_name().unwrap();
        let dir = TempDir::new(&format!("capabilities-{}", name.display()));
        let path = dir.join(name);
        // Not written by this process: what it forks meanwhile would hold the file open, and it could not be run.
        assert!(Command::new("cp").arg(program).arg(&path).status().unwrap().success());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { _dir: dir, path }
    }

    /// To be run by nobody with these capabilities.
    pub fn command(&self, capabilities: &[Capability]) -> Command {
        let numbers: Vec<u32> = capabilities.iter().map(|(number, _)| *number).collect();
        let mut command = Command::new(&self.path);
        // SAFETY: between fork and exec there are system calls alone; what they read is the closure's.
        unsafe { command.pre_exec(move || become_nobody(&numbers)) };
        command
    }
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// _LINUX_CAPABILITY_VERSION_3
const VERSION: u32 = 0x2008_0522;

fn become_nobody(capabilities: &[u32]) -> io::Result<()> {
    let done = |result: i64| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    let mut sets = [Sets::default(); 2];
    for &number in capabilities {
        let (word, bit) = (&mut sets[number as usize / 32], 1 << (number % 32));
        *word = Sets {
            effective: word.effective | bit,
            permitted: word.permitted | bit,
            inheritable: word.inheritable | bit,
        };
    }
    let header = Header { version: VERSION, pid: 0 };
    // SAFETY: they take numbers, and pointers to what outlives the calls.
    unsafe {
        done(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0).into())?;
        done(libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()))?;
        done(libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY))?;
        done(libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY))?;
        done(libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()))?;
        for &number in capabilities {
            let raise = libc::PR_CAP_AMBIENT_RAISE;
            done(libc::prctl(libc::PR_CAP_AMBIENT, raise, number, 0, 0).into())?;
        }
    }
    Ok(())
}
