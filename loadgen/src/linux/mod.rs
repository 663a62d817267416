//! Guests that boot Linux: what they boot, and whether that can be booted, found out before anything is created.

mod acpi;
mod boot;
mod console;
mod cpu;
mod machine;
mod tail;

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use common::session::usage;
use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, Kvm};

use crate::fleet::Spec;
use crate::guest;
use crate::process;
use crate::size::size_text;
use boot::Unbootable;
pub(crate) use machine::Machine;
use tail::Tails;

/// No kernel or initrd is bigger.
const MAX_FILE_BYTES: u64 = 1 << 30;

/// What guests boot.
#[derive(Clone, Debug)]
pub struct Linux {
    /// A kernel for x86-64: a bzImage, or a vmlinux (ELF).
    pub kernel: BootFile,
    /// The initial RAM disk.
    pub initrd: Option<BootFile>,
    /// The kernel's command line.
    pub cmdline: String,
    /// A guest is ready when a line of its console has this in it.
    pub ready: String,
    /// The directory for what each guest writes to its console: a file named after the guest.
    pub console: Option<PathBuf>,
}

impl Linux {
    /// A command line with which the kernel writes to the console that is kept, tells when it ends, and does not look for
    /// hardware that is not there.
    pub const CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 pci=off";
    /// What the kernel writes when it starts the first process, `Run /init as init process`, unless it is to be quiet.
    pub const READY: &str = "as init process";
    /// As much memory as distributions' kernels with a small initrd need.
    pub const MEMORY: u64 = 128 << 20;

    /// What has to be copied to each guest's memory, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        [Some(&self.kernel), self.initrd.as_ref()].into_iter().flatten().map(BootFile::len).sum()
    }

    /// Refuses what cannot be booted in so much memory. Makes the directory of the consoles if there is none.
    pub(crate) fn check(&self, memory_bytes: u64) -> Result<()> {
        if self.ready.is_empty() || self.ready.contains(['\r', '\n']) {
            return Err(usage("--ready is a part of a line, which is not empty"));
        }
        let least_bytes = boot::least_memory(self).map_err(|e| self.refusal(&e))?;
        if memory_bytes < least_bytes {
            return Err(usage(format!(
                "too little memory: to boot `{}` a guest needs at least {}, not {} (--memory)",
                self.kernel.path.display(),
                size_text(least_bytes),
                size_text(memory_bytes)
            )));
        }
        self.console.as_deref().map_or(Ok(()), make_directory)
    }

    fn refusal(&self, why: &Unbootable) -> anyhow::Error {
        usage(format!("cannot boot `{}`: {why}", self.kernel.path.display()))
    }

    /// The file of a guest's console.
    fn console_file(&self, number: u32) -> Option<PathBuf> {
        Some(self.console.as_ref()?.join(format!("{}.log", guest::name(number))))
    }
}

/// Makes a directory if there is none; refuses one in which no file can be made.
fn make_directory(dir: &Path) -> Result<()> {
    let made = match fs::create_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => try_directory(dir),
        made => made,
    };
    made.map_err(|e| usage(format!("cannot write consoles to `{}`: {e}", dir.display())))
}

/// Makes a file there, and removes it.
fn try_directory(dir: &Path) -> io::Result<()> {
    let path = dir.join(format!(".loadgen.{}", process::pid()));
    fs::File::create_new(&path).and_then(|_| fs::remove_file(&path))
}

/// A file that every guest has in its memory: read once, before forking.
#[derive(Clone)]
pub struct BootFile {
    path: PathBuf,
    bytes: Arc<[u8]>,
}

impl BootFile {
    /// Refuses what is no file with something in it.
    pub fn read(path: &Path) -> Result<Self> {
        let refuse = |why: &str| usage(format!("cannot boot `{}`: {why}", path.display()));
        let meta = fs::metadata(path).map_err(|e| refuse(&e.to_string()))?;
        match meta.len() {
            _ if !meta.is_file() => return Err(refuse("it is not a regular file")),
            0 => return Err(refuse("it is empty")),
            bytes if bytes > MAX_FILE_BYTES => {
                return Err(refuse(&format!("it has more than {}", size_text(MAX_FILE_BYTES))));
            }
            _ => {}
        }
        let bytes = fs::read(path).map_err(|e| refuse(&e.to_string()))?;
        Ok(Self { path: path.to_owned(), bytes: bytes.into() })
    }

    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
}

/// Without the contents.
impl fmt::Debug for BootFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.path.display(), self.bytes.len())
    }
}

/// What all guests of a fleet that boot Linux have in common; made before forking.
pub(crate) struct LinuxPlan {
    linux: Linux,
    memory_bytes: u64,
    /// Whether KSM may merge it.
    mem_merge: bool,
    cpuid: CpuId,
    tails: Tails,
}

impl LinuxPlan {
    /// None if guests are not to boot Linux; `supported` is the CPUID that KVM supports.
    pub(crate) fn of(kvm: &Kvm, supported: &CpuId, spec: &Spec) -> Result<Option<Self>> {
        let Some(linux) = &spec.linux else { return Ok(None) };
        Ok(Some(Self {
            linux: linux.clone(),
            memory_bytes: spec.memory_bytes,
            mem_merge: spec.mem_merge,
            cpuid: cpu::cpuid(supported, kvm.check_extension(Cap::TscDeadlineTimer)),
            tails: Tails::new(spec.vms).context("failed to map the ends of consoles")?,
        }))
    }

    /// What the console of the guest in this place ended with, for a sentence on its end to go on with.
    pub(crate) fn last_words(&self, place: u32) -> String {
        match tail::last_lines(&self.tails.of(place).text()) {
            lines if lines.is_empty() => "; its console is empty".to_owned(),
            lines => format!("; the end of its console:\n    {}", lines.join("\n    ")),
        }
    }
}
