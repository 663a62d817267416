//! KVM guests whose behaviour is known: the load that the tools are checked against.
//!
//! A [`Fleet`] is a number of small guests, each a process of its own, which count what they do. They are all
//! created first, then started together; what they have counted is the [`Truth`].

mod affinity;
mod cgroup;
mod chain;
mod checks;
mod code;
mod contents;
mod controls;
mod exits;
mod exits_code;
mod fleet;
mod guest;
mod hierarchy;
mod host;
mod image;
mod io;
mod janitor;
mod ksm;
mod linux;
mod long_mode;
mod memory;
mod memory_code;
mod memory_max;
mod ns;
mod numa;
mod pressure;
mod priority;
mod probe;
mod process;
mod quota;
mod record;
mod room;
mod shared;
mod size;
mod tell;
mod truth;
mod weight;
mod workload;

pub use controls::{Controls, Sched};
pub use exits::{ExitCount, ExitKind, Exits};
pub use fleet::{ChurnRate, Churned, Fleet, Spec, Stopped};
pub use host::{Finding, Report, Verdict};
pub use ksm::Expected;
pub use linux::{BootFile, Linux};
pub use memory::{ByKind, Memory, Rewrite};
pub use pressure::Pressure;
pub use probe::{Lateness, Probe};
pub use size::parse_size;
pub use truth::{Counted, MemoryTruth, Truth, TruthFile};
pub use workload::{Part, Workload};
