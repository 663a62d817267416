//! What the tools of kvm-bpf-tools share: everything that is neither a tool's own program nor its own report.

pub mod args;
pub mod cgroup;
pub mod exits;
pub mod groups;
pub mod hist;
pub mod host;
pub mod kvm;
pub mod maps;
pub mod output;
pub mod perf;
pub mod progs;
pub mod session;
pub mod time;
pub mod tracepoints;
pub mod vms;

/// Includes what the build script has generated from `bpf/STEM.bpf.c`, as module `skel`. Nobody wrote that code: our
/// lints are not for it.
#[macro_export]
macro_rules! skeleton {
    ($stem:literal) => {
        #[allow(
            dead_code,
            missing_docs,
            unused_qualifications,
            clippy::all,
            clippy::undocumented_unsafe_blocks,
            clippy::unwrap_used,
            clippy::semicolon_if_nothing_returned,
            clippy::uninlined_format_args
        )]
        mod skel {
            include!(concat!(env!("OUT_DIR"), "/", $stem, ".skel.rs"));
        }
    };
}
