//! The floor: an empty program in sched_switch, loaded by the bench itself.

use std::mem::MaybeUninit;

use anyhow::{Context as _, Result};
use libbpf_rs::skel::{OpenSkel as _, SkelBuilder as _};
use libbpf_rs::{Link, OpenObject};

common::skeleton!("floor");
use skel::{FloorSkel, FloorSkelBuilder};

/// The loaded program.
pub struct Floor<'obj>(FloorSkel<'obj>);

impl<'obj> Floor<'obj> {
    /// Loads it.
    pub fn load(object: &'obj mut MaybeUninit<OpenObject>) -> Result<Self> {
        let open = FloorSkelBuilder::default().open(object).context("failed to open `floor`")?;
        Ok(Self(open.load().context("failed to load `floor`: the bench needs root")?))
    }

    /// Attached as long as the link lives.
    pub fn attach(&self) -> Result<Link> {
        self.0.progs.sched_switch.attach().context("failed to attach `floor`")
    }
}
