//! A fleet of guests: creates them all, starts them together, and takes them down again.

mod churn;

use std::io;
use std::ops::ControlFlow;
use std::os::fd::AsRawFd as _;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use common::session::{host_cannot, usage};
use kvm_ioctls::Kvm;

use crate::cgroup::Cgroup;
use crate::checks;
use crate::controls::Controls;
use crate::guest::{self, Guest, Plan};
use crate::image;
use crate::janitor::Janitor;
use crate::ksm;
use crate::linux::Linux;
use crate::memory::Memory;
use crate::process::{self, Ended};
use crate::record::{PAGE_SIZE, VcpuPage};
use crate::room::{Each, Room};
use crate::shared::{Control, Shared};
use crate::truth::{self, IoThread, MemoryTruth, OfVm, Truth};
use crate::workload::Workload;
use churn::Turnover;
pub use churn::{ChurnRate, Churned};

/// How long the parent sleeps between looks at guests that are about to be ready.
const SETTLE_POLL: Duration = Duration::from_millis(50);
/// The same for guests that are about to leave: so long, and so much longer for each that is left. Each look
/// costs the kernel a walk over all of them.
const LEAVE_POLL: Duration = Duration::from_millis(1);
const LEAVE_POLL_PER_GUEST: Duration = Duration::from_micros(5);
/// How long it takes until threads that have gone to sleep are no longer queued: so long, and so much for each.
const SLEEP_DELAY: Duration = Duration::from_millis(5);
const SLEEP_DELAY_PER_THREAD: Duration = Duration::from_micros(20);
/// Guests that are told to leave are killed when for this long none has left: twice the longest timer period, and for
/// each a few turns on a CPU, which all must have before the first is gone.
const GRACE: Duration = Duration::from_secs(2);
const GRACE_PER_GUEST: Duration = Duration::from_micros(500);

/// What guests to make.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Number of guests.
    pub vms: u32,
    /// vCPUs of each guest: at most [`Spec::MAX_VCPUS`].
    pub vcpus: u32,
    /// Memory of each guest in bytes, beside the few pages that its code needs: a multiple of 4096, at most
    /// [`Spec::MAX_MEMORY`]. No page of it exists before it is touched.
    pub memory_bytes: u64,
    /// What every vCPU does.
    pub workload: Workload,
    /// What guests boot with the workload [`Workload::Linux`], and only with that; they have one vCPU.
    pub linux: Option<Linux>,
    /// Memory that is filled before the start, and rewritten during the run: the first part of `memory_bytes`.
    pub memory: Option<Memory>,
    /// Whether KSM may merge that memory, or all memory of guests that boot Linux.
    pub mem_merge: bool,
    /// How long the VMM sleeps before it answers an exit to userspace that the workload asked for.
    pub vmm_sleep: Duration,
    /// How much of a CPU a further thread of each guest's process burns, in per cent.
    pub io_thread_percent: Option<u32>,
    /// What guests are held to.
    pub controls: Controls,
}

impl Spec {
    /// The most vCPUs a guest can have.
    pub const MAX_VCPUS: u32 = image::MAX_VCPUS;
    /// The most memory a guest can have, in bytes.
    pub const MAX_MEMORY: u64 = image::MAX_MEMORY;

    /// Threads of each guest: its vCPUs', and the I/O thread.
    pub(crate) fn threads(&self) -> u32 {
        self.vcpus + u32::from(self.io_thread_percent.is_some())
    }

    /// Memory of each guest that is filled or that its vCPUs touch: it has at least so much.
    pub(crate) fn touched_bytes(&self) -> u64 {
        let fresh_pages = u64::from(self.workload.fresh_pages()) * u64::from(self.vcpus);
        fresh_pages * PAGE_SIZE as u64 + self.memory.map_or(0, |memory| memory.bytes)
    }

    /// Memory of each guest that is written to before the start.
    pub fn filled_bytes(&self) -> u64 {
        let loaded = self.linux.as_ref().map_or(0, Linux::bytes);
        loaded + self.memory.map_or(0, |memory| memory.bytes)
    }

    /// Refuses what no host could do.
    fn check(&self) -> Result<()> {
        self.controls.check()?;
        if let Some(linux) = &self.linux {
            // The ACPI tables have one.
            if self.vcpus > 1 {
                return Err(usage("guests that boot Linux have one vCPU: leave out --vcpus"));
            }
            linux.check(self.memory_bytes)?;
        }
        if self.touched_bytes() > image::MAPPED_MEMORY {
            let filled = self.memory.map_or(0, |memory| memory.bytes);
            let most = image::MAPPED_MEMORY.saturating_sub(filled) / PAGE_SIZE as u64;
            return Err(usage(format!(
                "too many page faults: the vCPUs of a guest can touch {most} pages together, not {} each",
                self.workload.fresh_pages()
            )));
        }
        Ok(())
    }
}

/// Guests, each a process of its own. Dropping the fleet kills those that are left and removes all traces.
pub struct Fleet {
    plan: Plan,
    kvm: Kvm,
    shared: Shared,
    cgroup: Cgroup,
    janitor: Option<Janitor>,
    /// The process group of the guests, which is the first guest's PID; 0 before there is one.
    group: libc::pid_t,
    created: u32,
    /// Guests ever created, with those that have been replaced: the number of the next one.
    numbers: u32,
    living: u32,
    /// Those that come and go.
    turnover: Turnover,
    failures: Vec<String>,
    warning: Option<String>,
    creation: Duration,
}

/// How the guests of a fleet left.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stopped {
    /// Guests that did not leave when told to, and were killed.
    pub killed: u32,
    /// How long it took until the last one was gone.
    pub duration: Duration,
}

impl Fleet {
    /// Creates the guests: processes, virtual machines and vCPUs, ready to run. `progress` is called with the
    /// number of guests made so far; with [`ControlFlow::Break`] the fleet stays as small as it is.
    ///
    /// Forks, so the process must have a single thread. Fails with [`host_cannot`] if this host has no KVM, or
    /// does not allow what is asked for.
    pub fn create(spec: &Spec, progress: impl FnMut(u32) -> ControlFlow<()>) -> Result<Self> {
        let mut fleet = Self::new(spec, true)?;
        fleet.grow(spec.vms, progress)?;
        Ok(fleet)
    }

    /// A fleet without guests, that can [`grow`](Self::grow) to [`Spec::vms`] of them. Fails as [`Fleet::create`], but
    /// does not ask whether there is memory for all of them: who lets it grow looks after that.
    pub fn prepare(spec: &Spec) -> Result<Self> {
        Self::new(spec, false)
    }

    /// How many such guests the limits of this host allow, memory left aside, and which limit allows no more; none if
    /// there is no limit.
    pub fn most(spec: &Spec) -> Option<(u32, String)> {
        let room = Room::read(Each::of(spec)).but_for_memory();
        let (limit, guests) = room.binding()?;
        let sentence = format!("{limit} allows no more: {}", limit.remedy(guests * 2));
        Some((u32::try_from(guests).unwrap_or(u32::MAX), sentence))
    }

    fn new(spec: &Spec, at_once: bool) -> Result<Self> {
        process::check_single_threaded()?;
        spec.check()?;
        let kvm = checks::open_kvm()?;
        checks::host(&kvm, spec, at_once)?;
        let pages = spec.vms as usize * spec.vcpus as usize;
        let plan = Plan::new(&kvm, spec)?;
        let cgroup = Cgroup::create(&format!("loadgen-{}", process::pid()), &spec.controls);
        // From here on the cgroup is removed however this ends.
        let janitor =
            Janitor::start(&cgroup).context("failed to start the `lg-janitor` process")?;
        let mut fleet = Self {
            kvm,
            shared: Shared::new(pages, spec.workload, plan.node)
                .context("failed to map the memory shared with guests")?,
            plan,
            cgroup,
            janitor: Some(janitor),
            group: 0,
            created: 0,
            numbers: 0,
            living: 0,
            turnover: Turnover::default(),
            failures: Vec::new(),
            warning: None,
            creation: Duration::ZERO,
        };
        fleet.cgroup.prepare()?;
        if !fleet.cgroup.has_weight() {
            (fleet.plan.priority, fleet.warning) = fleet.plan.priority.without_weight();
        }
        Ok(fleet)
    }

    /// Creates guests until there are `vms`, ready to run; those that are there already go on. `progress` and
    /// failures as for [`Fleet::create`].
    pub fn grow(&mut self, vms: u32, progress: impl FnMut(u32) -> ControlFlow<()>) -> Result<()> {
        process::check_single_threaded()?;
        let (start, there) = (Instant::now(), self.created);
        self.fork_guests(vms.min(self.plan.vms), progress)?;
        let threads = self.numbers * self.plan.threads;
        self.wait_for(|control| control.settled.wait(threads, SETTLE_POLL))?;
        self.admit_ready()?;
        self.admit(there..self.created)?;
        self.shared.control().rest.open_for(self.numbers);
        if there == 0 {
            // What they have run beyond their share while they were created is forgotten when they have slept here:
            // among thousands EEVDF would let them wait some seconds for each millisecond of that (place_entity of the
            // kernel). Those that come later would wait for a turn to do so.
            self.wait_for(|control| control.rested.wait(threads, SETTLE_POLL))?;
            // Whoever sleeps with such a debt stays queued until the CPU has nothing better to do (DELAY_DEQUEUE).
            thread::sleep(SLEEP_DELAY + SLEEP_DELAY_PER_THREAD * threads);
        }
        self.cgroup.limit_cpu()?;
        (there..self.created).try_for_each(|vm| self.cgroup.limit_cpu_of(self.number(vm)))?;
        self.creation += start.elapsed();
        Ok(())
    }

    /// Lets all guests that have been created run, at once.
    pub fn start(&self) {
        self.shared.control().run.open_for(self.numbers);
    }

    /// Number of guests: those that have been replaced do not count.
    pub fn vms(&self) -> u32 {
        self.created
    }

    /// Number of vCPUs of all guests.
    pub fn vcpus(&self) -> u32 {
        self.created * self.plan.vcpus
    }

    /// How long it took to create them.
    pub fn creation(&self) -> Duration {
        self.creation
    }

    /// How long each of the guests took to create, from its fork until it was ready, in nanoseconds.
    pub fn creations_ns(&self) -> impl Iterator<Item = u64> {
        (0..self.created).map(|vm| self.page(vm, 0).creation_ns.load(Relaxed))
    }

    /// How far apart guests had a CPU for the first time after they were let run, of those with this number (from 0) and
    /// above; none as long as one of them has had none, or after guests have been replaced.
    pub fn started_within(&self, first: u32) -> Option<Duration> {
        if self.numbers > self.created {
            return None;
        }
        let started = (first..self.created).map(|vm| self.page(vm, 0).started_ns.load(Relaxed));
        let earliest_ns = started.clone().min().filter(|ns| *ns > 0)?;
        Some(Duration::from_nanos(started.max()? - earliest_ns))
    }

    /// How long each of the guests took to boot Linux, from its first instruction until it was ready, in nanoseconds;
    /// none inside if it has not become so. None if guests do not boot Linux.
    pub fn boots_ns(&self) -> Option<impl Iterator<Item = Option<u64>>> {
        self.plan.linux.as_ref()?;
        Some((0..self.created).map(|vm| truth::boot_ns(self.page(vm, 0))))
    }

    /// The number of each guest, and how many rounds of the workload's loop it has done, its vCPUs together.
    pub fn iterations(&self) -> impl Iterator<Item = (u32, u64)> {
        let of = |vm, vcpu| self.page(vm, vcpu).iterations.load(Relaxed);
        let all = move |vm| (0..self.plan.vcpus).map(|vcpu| of(vm, vcpu)).sum();
        (0..self.created).map(move |vm| (self.number(vm), all(vm)))
    }

    /// A sentence about what this host did not allow, if anything.
    pub fn warning(&self) -> Option<String> {
        self.warning.clone()
    }

    /// True if no guest is left: all are done, or have failed.
    pub fn is_over(&mut self) -> bool {
        self.reap(false);
        self.living == 0 && !self.turnover.has_free()
    }

    /// A sentence for each guest that has ended without being told to: which, and why.
    pub fn failures(&mut self) -> &[String] {
        self.reap(false);
        &self.failures
    }

    /// What every vCPU has counted up to now; before the start, during the run or after the end. Guests that have been
    /// replaced are not in it.
    pub fn truth(&self) -> impl Iterator<Item = Truth> {
        let expected = self.expected();
        self.guests().flat_map(move |vm| self.truth_of(vm, expected))
    }

    /// The memory of each guest, if it was filled.
    pub fn memory(&self) -> impl Iterator<Item = MemoryTruth> {
        let expected = self.expected();
        self.guests().filter_map(move |vm| self.memory_of(vm, expected))
    }

    /// Asks each guest to rewrite [`Memory::pages_per_signal`] pages more.
    pub fn rewrite(&self) {
        let pages = self.plan.memory.map_or(0, |memory| memory.pages_per_signal());
        for vm in 0..self.created {
            self.page(vm, 0).memory.goal.fetch_add(pages, Relaxed);
        }
    }

    /// True as long as there are pages to rewrite that a guest has been asked to.
    pub fn is_rewriting(&self) -> bool {
        (0..self.created).any(|vm| {
            let record = &self.page(vm, 0).memory;
            record.all.load(Relaxed) < record.goal.load(Relaxed)
        })
    }

    /// Tells all guests to leave and waits until they are gone; those that do not leave are killed. What they
    /// have counted can be read afterwards.
    pub fn stop(&mut self) -> Stopped {
        let start = Instant::now();
        self.reap(false);
        (0..self.created).for_each(|vm| self.tell_to_leave(vm));
        self.shared.control().leave();
        if self.living > 0 {
            self.end_linux(-self.group);
        }
        self.cgroup.lift_cpu();
        let mut killed = 0;
        let mut last_left = start;
        while self.living > 0 {
            if self.reap(true) > 0 {
                last_left = Instant::now();
            } else if last_left.elapsed() > GRACE + GRACE_PER_GUEST * self.living {
                killed = self.living;
                self.kill();
            }
            if self.living > 0 {
                thread::sleep(LEAVE_POLL + LEAVE_POLL_PER_GUEST * self.living);
            }
        }
        Stopped { killed, duration: start.elapsed() }
    }

    /// Removes the cgroup, too. An error if anything is left behind.
    pub fn finish(mut self) -> Result<()> {
        self.kill();
        match self.janitor.take().is_none_or(Janitor::finish) {
            true => Ok(()),
            false => bail!("failed to remove the cgroup `loadgen-{}`", process::pid()),
        }
    }

    /// What the counters of KSM show when all that can be merged is, and nobody else merges anything; none if there is
    /// nothing to merge, or no KSM.
    fn expected(&self) -> Option<ksm::Expected> {
        let memory = self.plan.memory.filter(|_| self.plan.mem_merge)?;
        ksm::Expected::on_this_host(self.created, memory.pages())
    }

    /// What each vCPU of a guest has counted.
    fn truth_of(
        &self,
        vm: u32,
        expected: Option<ksm::Expected>,
    ) -> impl Iterator<Item = Truth> + use<'_> {
        let first = self.page(vm, 0);
        let of_vm = OfVm {
            number: self.number(vm),
            pid: first.pid.load(Relaxed),
            workload: self.plan.workload,
            has_steal: self.plan.steal,
            throttled_ns: self.cgroup.throttled_ns(self.number(vm)),
            io_thread: self.plan.io_thread_percent.map(|_| IoThread::read(first)),
            memory: self.memory_of(vm, expected),
        };
        (0..self.plan.vcpus).map(move |vcpu| Truth::read(self.page(vm, vcpu), vcpu, &of_vm))
    }

    fn memory_of(&self, vm: u32, expected: Option<ksm::Expected>) -> Option<MemoryTruth> {
        let wanted = self.plan.memory?;
        let could_merge = match self.plan.mem_merge {
            true => ksm::could_merge(self.created, wanted.pages()),
            false => 0,
        };
        Some(MemoryTruth::read(self.page(vm, 0), wanted, could_merge, expected))
    }

    fn page(&self, vm: u32, vcpu: u32) -> &VcpuPage {
        let index = vm as usize * self.plan.vcpus as usize + vcpu as usize;
        self.shared.page(index)
    }

    /// All of them; a place is empty if a guest could not be replaced.
    fn guests(&self) -> impl Iterator<Item = u32> {
        (0..self.created).filter(|vm| self.page(*vm, 0).pid.load(Relaxed) != 0)
    }

    fn number(&self, vm: u32) -> u32 {
        self.page(vm, 0).number.load(Relaxed)
    }

    /// Has a guest leave as soon as it looks.
    fn tell_to_leave(&self, vm: u32) {
        (0..self.plan.vcpus).for_each(|vcpu| self.page(vm, vcpu).stop.store(1, Relaxed));
        self.cgroup.lift_cpu_of(self.number(vm));
    }

    fn fork_guests(
        &mut self,
        vms: u32,
        mut progress: impl FnMut(u32) -> ControlFlow<()>,
    ) -> Result<()> {
        for vm in self.created..vms {
            self.cgroup.add_guest(self.numbers)?;
            self.fork_guest(vm)?;
            self.created += 1;
            if progress(self.created).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Forks the guest with the next number, whose cgroup is there and whose pages are clear.
    fn fork_guest(&mut self, vm: u32) -> Result<()> {
        let number = self.numbers;
        let guest = Guest {
            plan: &self.plan,
            shared: &self.shared,
            cgroup: &self.cgroup,
            number,
            place: vm,
            parent: process::pid(),
            kvm: self.kvm.as_raw_fd(),
            forked: Instant::now(),
        };
        let pid = process::fork(|| guest.run()).map_err(|e| fork_failed(number, &e))?;
        // A group of their own: a terminal's Ctrl-C is for the parent, which lets them leave in order. It is gone with
        // the last of them that has been waited for.
        if self.living == 0 {
            self.group = 0;
        }
        // The kernel may refuse only if all guests so far are dead, which is found out soon enough.
        // SAFETY: setpgid has no memory to go wrong with.
        unsafe { libc::setpgid(pid, self.group) };
        if self.group == 0 {
            self.group = pid;
        }
        // Kept in shared memory: the parent's own would be copied page by page while guests are forked.
        self.page(vm, 0).pid.store(pid.unsigned_abs(), Relaxed);
        self.page(vm, 0).number.store(number, Relaxed);
        self.numbers += 1;
        self.living += 1;
        Ok(())
    }

    /// Takes guests that are ready to their cgroup.
    fn admit(&self, guests: impl Iterator<Item = u32> + Clone) -> Result<()> {
        let pid = |vm| self.page(vm, 0).pid.load(Relaxed);
        self.cgroup.admit(guests.map(|vm| (self.number(vm), pid(vm))))
    }

    /// Waits until as many have come, or one has failed.
    fn wait_for(&mut self, come: impl Fn(&Control) -> bool) -> Result<()> {
        while !come(self.shared.control()) {
            self.reap(false);
            if let Some(failure) = self.failures.first() {
                return Err(anyhow!("failed to create guests: {failure}"));
            }
        }
        Ok(())
    }

    /// Takes note of guests that have ended; returns how many.
    fn reap(&mut self, told_to_leave: bool) -> u32 {
        let mut reaped = 0;
        while self.living > 0
            && let Some((pid, ended)) = process::wait(-self.group, libc::WNOHANG)
        {
            reaped += 1;
            self.living -= 1;
            let is_done = self.plan.workload.ends_by_itself();
            let may_leave = told_to_leave || self.note_left(pid.unsigned_abs()) || is_done;
            let has_left = match ended {
                Ended::Exited(0) => true,
                Ended::Killed(libc::SIGTERM) => self.plan.linux.is_some(),
                _ => false,
            };
            if !(may_leave && has_left) {
                let sentence = self.why(pid.unsigned_abs(), ended);
                self.failures.push(sentence);
            }
        }
        reaped
    }

    /// The guest with this process.
    fn find(&self, pid: u32) -> Option<u32> {
        (0..self.created).find(|vm| self.page(*vm, 0).pid.load(Relaxed) == pid)
    }

    /// A sentence on a guest that should not have ended as it did.
    fn why(&self, pid: u32, ended: Ended) -> String {
        let Some(vm) = self.find(pid) else {
            return format!("the guest with PID {pid} ended ({ended})");
        };
        let name = guest::name(self.number(vm));
        for vcpu in 0..self.plan.vcpus {
            if let Some(failure) = self.page(vm, vcpu).failure() {
                let linux = self.plan.linux.as_ref();
                let last_words = linux.map_or_else(String::new, |linux| linux.last_words(vm));
                return format!("`{name}` vCPU {vcpu}: {failure}{last_words}");
            }
        }
        match self.cgroup.memory_kill(self.number(vm)) {
            Some(limit) if ended == Ended::Killed(libc::SIGKILL) => {
                format!("`{name}` was killed by the kernel: {limit}")
            }
            _ => format!("`{name}` {ended}"),
        }
    }

    /// Ends a guest that has not been waited for, or with their process group (negative) all of them, if they boot Linux:
    /// that takes no notice of being told to leave.
    fn end_linux(&self, pid: libc::pid_t) {
        if self.plan.linux.is_some() {
            // SAFETY: kill has no memory to go wrong with.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
    }

    /// Kills what is left of the guests, and waits until it is gone.
    fn kill(&mut self) {
        if self.living == 0 {
            return;
        }
        // SAFETY: kill has no memory to go wrong with. The group is ours as long as one of its processes has
        // not been waited for.
        unsafe { libc::kill(-self.group, libc::SIGKILL) };
        while self.living > 0 && process::wait(-self.group, 0).is_some() {
            self.living -= 1;
        }
        self.living = 0;
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.kill();
        self.janitor.take().map(Janitor::finish);
    }
}

fn fork_failed(number: u32, cause: &io::Error) -> anyhow::Error {
    let name = guest::name(number);
    match cause.raw_os_error() {
        Some(libc::EAGAIN) => host_cannot(format!(
            "failed to fork `{name}`: {cause}: raise the limit on processes (ulimit -u, pids.max of the \
             cgroup, kernel.pid_max) or ask for fewer guests"
        )),
        Some(libc::ENOMEM) => {
            host_cannot(format!("failed to fork `{name}`: {cause}: ask for fewer guests"))
        }
        _ => anyhow!("failed to fork `{name}`: {cause}"),
    }
}
