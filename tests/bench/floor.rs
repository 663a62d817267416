//! The floor: empty programs where the tools have theirs, loaded by the bench itself.

use std::mem::MaybeUninit;

use anyhow::{Context as _, Result};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{Link, OpenObject};

common::skeleton!("floor");
use skel::{FloorSkel, FloorSkelBuilder};

/// The loaded programs.
pub struct Floor<'obj>(FloorSkel<'obj>);

impl<'obj> Floor<'obj> {
    /// Loads them.
    pub fn load(object: &'obj mut MaybeUninit<OpenObject>) -> Result<Self> {
        let open = FloorSkelBuilder::default().open(object).context("failed to open `floor`")?;
        Ok(Self(open.load().context("failed to load `floor`: the bench needs root")?))
    }

    /// Those on these tracepoints, attached as long as the links live.
    pub fn attach(&self, tracepoints: &[&str]) -> Result<Vec<Link>> {
        let progs = &self.0.progs;
        let all = [
            &progs.sched_switch,
            &progs.kvm_exit,
            &progs.kvm_entry,
            &progs.kvm_userspace_exit,
            &progs.kvm_fpu,
            &progs.kvm_vcpu_wakeup,
            &progs.sched_migrate_task,
        ];
        let wanted = all
            .into_iter()
            .filter(|prog| prog.name().to_str().is_some_and(|name| tracepoints.contains(&name)));
        wanted.map(|prog| prog.attach().context("failed to attach `floor`")).collect()
    }
}
