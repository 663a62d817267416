//! The options of guests that boot Linux: the same for every command that runs guests.

use std::path::PathBuf;

use anyhow::Result;
use loadgen::{BootFile, Linux};

/// Where these options stand in `--help`.
const LINUX: &str = "Linux";

/// What guests boot.
#[derive(clap::Args)]
pub(crate) struct LinuxArgs {
    /// Boot this kernel, a bzImage or an ELF vmlinux, instead of a workload
    ///
    /// Of x86-64. See the manual's LINUX GUESTS.
    #[arg(long, value_name = "KERNEL", conflicts_with = "workload", help_heading = LINUX)]
    linux: Option<PathBuf>,
    /// The initial RAM disk of --linux
    #[arg(long, value_name = "FILE", requires = "linux", help_heading = LINUX)]
    initrd: Option<PathBuf>,
    /// The command line of --linux
    #[arg(long, value_name = "TEXT", requires = "linux", help_heading = LINUX, default_value = Linux::CMDLINE)]
    cmdline: String,
    /// Write the serial console of each guest to DIR/NAME.log; DIR is made if need be
    #[arg(long, value_name = "DIR", requires = "linux", help_heading = LINUX)]
    console: Option<PathBuf>,
    /// A guest is ready when a line of its console has this in it
    #[arg(long, value_name = "LINE", requires = "linux", help_heading = LINUX, default_value = Linux::READY)]
    ready: String,
}

impl LinuxArgs {
    /// What is to be booted, if anything is.
    pub(crate) fn linux(&self) -> Result<Option<Linux>> {
        let Some(kernel) = &self.linux else { return Ok(None) };
        Ok(Some(Linux {
            kernel: BootFile::read(kernel)?,
            initrd: self.initrd.as_deref().map(BootFile::read).transpose()?,
            cmdline: self.cmdline.clone(),
            ready: self.ready.clone(),
            console: self.console.clone(),
        }))
    }
}
