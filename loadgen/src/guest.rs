//! A guest's process: creates its virtual machine, waits for the start, and runs it until it leaves.
//!
//! It has been forked from the parent and shares the parent's pages as long as it does not write to them: no
//! allocation, file or thread that it can do without. One with one vCPU and no I/O thread does not touch the heap.

use std::os::fd::{FromRawFd as _, RawFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{self, Scope, Thread};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use kvm_bindings::{
    CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_STEAL_TIME, KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE,
    Msrs, kvm_enable_cap, kvm_mp_state, kvm_msr_entry, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};

use crate::affinity::Placement;
use crate::cgroup::Cgroup;
use crate::code::{Entry, STOP_PORT};
use crate::contents;
use crate::exits_code::PIO_PORT;
use crate::fleet::Spec;
use crate::image::{self, IMAGE_SIZE, MMIO_GPA};
use crate::io;
use crate::linux::{LinuxPlan, Machine};
use crate::memory::Memory;
use crate::ns::ns;
use crate::numa::Node;
use crate::priority::Priority;
use crate::process::{self, Name};
use crate::record::{Failure, PAGE_SIZE, Step, VcpuPage};
use crate::shared::{self, Order, Shared};
use crate::tell;
use crate::workload::Workload;

/// `MSR_KVM_STEAL_TIME` of arch/x86/include/uapi/asm/kvm_para.h, and its enable bit.
const MSR_KVM_STEAL_TIME: u32 = 0x4b56_4d03;
const MSR_KVM_STEAL_TIME_ENABLED: u64 = 1;

/// Stack of a thread, which only calls KVM_RUN or burns CPU.
const THREAD_STACK: usize = 64 << 10;

/// What all guests of a fleet have in common; made before forking.
pub(crate) struct Plan {
    /// When the fleet was made.
    begun: Instant,
    pub(crate) vms: u32,
    pub(crate) vcpus: u32,
    /// Threads of each guest that wait for the start.
    pub(crate) threads: u32,
    pub(crate) memory_bytes: u64,
    pub(crate) workload: Workload,
    /// What guests boot that are not ours.
    pub(crate) linux: Option<LinuxPlan>,
    /// The memory to fill: the first part of the guest's own.
    pub(crate) memory: Option<Memory>,
    /// Whether KSM may merge it.
    pub(crate) mem_merge: bool,
    /// How long the VMM sleeps before it answers an exit to userspace.
    pub(crate) vmm_sleep: Duration,
    /// What the I/O thread burns, in per cent of a CPU.
    pub(crate) io_thread_percent: Option<u32>,
    /// The CPUs that guests are bound to.
    placement: Placement,
    /// The NUMA node that their memory is bound to.
    pub(crate) node: Option<Node>,
    /// Their nice value and scheduling policy.
    pub(crate) priority: Priority,
    /// Whether KVM reports steal time.
    pub(crate) steal: bool,
    split_irqchip: bool,
    /// Whether the processor's hypercall is VMCALL, not VMMCALL.
    vmcall: bool,
    /// CPUID for each vCPU number. Without one 6.12 refuses long mode, and KVM gives a local APIC no periodic timer.
    cpuids: Vec<CpuId>,
    /// The write to MSR_KVM_STEAL_TIME for each vCPU number: the same in all guests.
    steal_msrs: Vec<Msrs>,
}

impl Plan {
    /// Asks KVM what it can do, and the host whether guests can be held to what is asked for.
    pub(crate) fn new(kvm: &Kvm, spec: &Spec) -> Result<Self> {
        let supported = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .context("failed to get the CPUID leaves that KVM supports")?;
        let steal_msr = |vcpu| {
            let entry = kvm_msr_entry {
                index: MSR_KVM_STEAL_TIME,
                data: image::vcpu_gpa(vcpu) | MSR_KVM_STEAL_TIME_ENABLED,
                ..Default::default()
            };
            Msrs::from_entries(&[entry]).ok()
        };
        let node = spec.controls.numa_node.map(Node::find).transpose()?;
        let priority = Priority::new(&spec.controls);
        priority.check()?;
        Ok(Self {
            begun: Instant::now(),
            vms: spec.vms,
            vcpus: spec.vcpus,
            threads: spec.threads(),
            memory_bytes: spec.memory_bytes.max(spec.touched_bytes()),
            workload: spec.workload,
            linux: LinuxPlan::of(kvm, &supported, spec)?,
            memory: spec.memory,
            mem_merge: spec.mem_merge,
            vmm_sleep: spec.vmm_sleep,
            io_thread_percent: spec.io_thread_percent,
            placement: Placement::new(&spec.controls, node)?,
            node,
            priority,
            steal: kvm.check_extension_raw(KVM_CAP_STEAL_TIME.into()) > 0,
            vmcall: knows_vmcall(&supported),
            split_irqchip: kvm.check_extension(Cap::SplitIrqchip),
            cpuids: (0..spec.vcpus).map(|vcpu| cpuid(&supported, vcpu)).collect(),
            steal_msrs: (0..spec.vcpus).filter_map(steal_msr).collect(),
        })
    }
}

/// A few leaves of what KVM supports, with the vCPU's own APIC identifier.
fn cpuid(supported: &CpuId, vcpu: u32) -> CpuId {
    const LEAVES: [u32; 7] = [
        0x0,
        0x1,
        0x4000_0000, // KVM's signature and
        0x4000_0001, // paravirtual features
        0x8000_0000,
        0x8000_0001, // long mode
        0x8000_0008, // physical address bits
    ];
    let mut cpuid = supported.clone();
    cpuid.retain(|leaf| LEAVES.contains(&leaf.function));
    for leaf in cpuid.as_mut_slice() {
        if leaf.function == 1 {
            leaf.ebx = leaf.ebx & 0x00ff_ffff | vcpu << 24;
        }
    }
    cpuid
}

/// Whether VMCALL is the hypercall of the processor that this is the CPUID of: so it is on Intel and those who make
/// the like of it. On AMD and Hygon it is VMMCALL.
fn knows_vmcall(cpuid: &CpuId) -> bool {
    let vendor = cpuid.as_slice().iter().find(|leaf| leaf.function == 0);
    let vendor = vendor.map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes));
    !matches!(vendor.as_ref().map(|v| v.as_flattened()), Some(b"AuthenticAMD" | b"HygonGenuine"))
}

/// What a guest's process has been given.
pub(crate) struct Guest<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) shared: &'a Shared,
    pub(crate) cgroup: &'a Cgroup,
    /// Counted from 0.
    pub(crate) number: u32,
    /// Where its pages are, and which CPUs it is pinned to: those of the guest that it replaces, if it does.
    pub(crate) place: u32,
    pub(crate) parent: u32,
    pub(crate) kvm: RawFd,
    /// When the parent began to fork it.
    pub(crate) forked: Instant,
}

/// What guests' names begin with; their numbers follow.
const NAME: &str = "loadgen-";

/// A guest's name, from its number counted from 0: `loadgen-0001` is the first.
pub(crate) fn name(number: u32) -> String {
    format!("{NAME}{:04}", number + 1)
}

impl Guest<'_> {
    /// Everything the process does; returns its exit status.
    pub(crate) fn run(&self) -> i32 {
        match self.live() {
            Ok(()) => 0,
            Err(failure) => self.die(0, failure),
        }
    }

    /// Says what went wrong and ends the process. The parent finds out by waiting for it.
    fn die(&self, vcpu: u32, failure: Failure) -> ! {
        self.page(vcpu).fail(failure);
        process::exit_now(1)
    }

    fn page(&self, vcpu: u32) -> &VcpuPage {
        let index = self.place as usize * self.plan.vcpus as usize + vcpu as usize;
        self.shared.page(index)
    }

    fn live(&self) -> Result<(), Failure> {
        // If the parent is gone there is nobody to tell.
        if process::die_with(self.parent).is_err() {
            return Ok(());
        }
        Name::new(format_args!("{NAME}{:04}", self.number + 1)).set();
        let kvm = process::keep_only(self.kvm).map_err(of_io(Step::Detach))?;
        // SAFETY: `keep_only` returns an open descriptor of /dev/kvm that nothing else owns.
        let kvm = unsafe { Kvm::from_raw_fd(kvm) };
        self.cgroup.join_for_memory(self.number).map_err(of_io(Step::JoinCgroup))?;
        if let Some(node) = self.plan.node {
            node.bind_thread().map_err(of_io(Step::BindMemory))?;
        }
        if let Some(plan) = &self.plan.linux {
            // Linux takes no notice of what the parent writes to tell it to leave.
            process::die_of_sigterm();
            let machine = Machine::create(&kvm, plan, self.number)?;
            self.hold()?;
            self.run_beside_io_thread(|| self.run_linux(plan, machine));
            return Ok(());
        }
        let vm = self.create_vm(&kvm)?;
        let first = self.create_vcpu(&vm, 0)?;
        let others = (1..self.plan.vcpus).map(|vcpu| self.create_vcpu(&vm, vcpu));
        let others: Vec<VcpuFd> = others.collect::<Result<_, _>>()?;
        self.hold()?;
        self.run_beside_io_thread(|| self.run_vcpus(first, others));
        Ok(())
    }

    /// Holds the process to what is asked for, when what would suffer from it has been done.
    fn hold(&self) -> Result<(), Failure> {
        self.plan.priority.apply().map_err(of_io(Step::SetPriority))?;
        self.plan.placement.bind().map_err(of_io(Step::Bind))
    }

    fn create_vm(&self, kvm: &Kvm) -> Result<VmFd, Failure> {
        let vm = create_vm(kvm)?;
        if self.plan.workload.has_apic() {
            self.create_irqchip(&vm)?;
        }
        let vcpu_bytes = PAGE_SIZE * self.plan.vcpus as usize;
        let parts = [
            (self.shared.image(), IMAGE_SIZE),
            (ptr::from_ref(self.page(0)).cast_mut().cast(), vcpu_bytes),
        ];
        let common = shared::map_side_by_side(parts).map_err(of_io(Step::MapMemory))?;
        let size = (IMAGE_SIZE + vcpu_bytes) as u64;
        set_slot(&vm, 0, image::IMAGE_GPA, size, common)?;
        if self.plan.memory_bytes > 0 {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            let size = in_memory(self.plan.memory_bytes);
            let memory = shared::map(size, flags).map_err(of_io(Step::MapMemory))?;
            if self.plan.memory.is_some() || self.plan.workload.fresh_pages() > 0 {
                shared::forbid_huge_pages(memory, size).map_err(of_io(Step::MapMemory))?;
            }
            if let Some(wanted) = &self.plan.memory {
                // SAFETY: the mapping is at least so big, has just been made, and nobody else knows it.
                unsafe { contents::fill(memory, wanted.pages()) };
                if self.plan.mem_merge {
                    let merge = shared::allow_merging(memory, in_memory(wanted.bytes));
                    merge.map_err(of_io(Step::AllowMerging))?;
                }
            }
            set_slot(&vm, 1, image::MEMORY_GPA, size as u64, memory)?;
        }
        Ok(vm)
    }

    /// A local APIC per vCPU; the rest of the chip set only where KVM cannot leave it out.
    fn create_irqchip(&self, vm: &VmFd) -> Result<(), Failure> {
        let result = if self.plan.split_irqchip {
            let cap = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
            vm.enable_cap(&cap)
        } else {
            vm.create_irq_chip()
        };
        result.map_err(of_kvm(Step::CreateIrqchip))
    }

    fn create_vcpu(&self, vm: &VmFd, number: u32) -> Result<VcpuFd, Failure> {
        let vcpu = vm.create_vcpu(number.into()).map_err(of_kvm(Step::CreateVcpu))?;
        let page = self.page(number);
        image::prepare_page(page, number);
        if let Some(cpuid) = self.plan.cpuids.get(number as usize) {
            vcpu.set_cpuid2(cpuid).map_err(of_kvm(Step::SetCpuid))?;
        }
        let khz = || vcpu.get_tsc_khz().map_err(of_kvm(Step::GetTsc));
        if let Some(timer) = self.plan.workload.timer() {
            tell::timer(page, timer, khz()?);
        }
        if let Workload::Exits(exits) = self.plan.workload {
            let fresh_gva = image::MEMORY_GPA + self.plan.memory.map_or(0, |memory| memory.bytes);
            tell::exits(page, &exits, number, khz()?, self.plan.vmcall, fresh_gva);
        }
        if let Some(memory) = &self.plan.memory
            && let Some(rewrite) = memory.rewrite
            && number == 0
        {
            tell::rewrites(page, memory, rewrite, khz()?);
        }
        if self.plan.workload.has_apic() {
            // With a local APIC all vCPUs but the first wait for a start-up interrupt, unless told otherwise.
            let state = kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE };
            vcpu.set_mp_state(state).map_err(of_kvm(Step::SetState))?;
        }
        let entry = Entry::first(self.plan.workload);
        let set_registers = of_kvm(Step::SetRegisters);
        let initial = vcpu.get_sregs().map_err(&set_registers)?;
        vcpu.set_sregs(&image::sregs(initial, number)).map_err(&set_registers)?;
        vcpu.set_regs(&image::regs(entry, number)).map_err(&set_registers)?;
        if let Some(msrs) = self.plan.steal_msrs.get(number as usize)
            && self.plan.steal
        {
            vcpu.set_msrs(msrs).map_err(of_kvm(Step::EnableSteal))?;
        }
        Ok(vcpu)
    }

    /// vCPU 0 runs on this thread, so that a guest with one vCPU is one thread; each other gets its own.
    fn run_vcpus(&self, first: VcpuFd, others: Vec<VcpuFd>) {
        // A scope is an allocation.
        if others.is_empty() {
            return self.run_vcpu(0, first);
        }
        thread::scope(|scope| {
            for (number, vcpu) in (1..).zip(others) {
                self.spawn(scope, number, &format!("vcpu{number}"), move || {
                    self.run_vcpu(number, vcpu);
                });
            }
            self.run_vcpu(0, first);
        });
    }

    /// Runs the guest, with one more thread beside it if that is asked for.
    fn run_beside_io_thread(&self, run: impl FnOnce()) {
        let Some(percent) = self.plan.io_thread_percent else { return run() };
        let page = self.page(0);
        thread::scope(|scope| {
            let thread = self.spawn(scope, 0, "io", || {
                page.io_thread_tid.store(process::gettid(), Relaxed);
                if self.wait_for_start() == Order::GoOn {
                    io::burn(page, percent);
                }
            });
            run();
            page.stop.store(1, Relaxed);
            thread.unpark();
        });
    }

    /// Starts a thread and names it. If that fails, so does the guest: as vCPU `vcpu`, and at once, because those that
    /// have been started wait for an order that will not come.
    fn spawn<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        vcpu: u32,
        name: &str,
        work: impl FnOnce() + Send + 'scope,
    ) -> Thread {
        let name = Name::new(format_args!("{:04}/{name}", self.number + 1));
        let thread =
            thread::Builder::new().stack_size(THREAD_STACK).spawn_scoped(scope, move || {
                name.set();
                work();
            });
        match thread {
            Ok(handle) => handle.thread().clone(),
            Err(e) => self.die(vcpu, of_io(Step::StartThread)(e)),
        }
    }

    /// Tells the parent that one more thread is ready, and waits for it to start or end the run.
    fn wait_for_start(&self) -> Order {
        let control = self.shared.control();
        control.settled.come();
        if control.rest.wait(self.number) == Order::Leave {
            return Order::Leave;
        }
        control.rested.come();
        control.run.wait(self.number)
    }

    /// Takes its place on the CPUs as the thread of a vCPU, says that it is there, and waits for the start.
    fn settle(&self, number: u32) -> Order {
        let page = self.page(number);
        page.tid.store(process::gettid(), Relaxed);
        if let Err(e) = self.plan.placement.pin(self.place * self.plan.vcpus + number) {
            self.die(number, of_io(Step::Bind)(e));
        }
        if number == 0 {
            page.creation_ns.store(ns(self.forked.elapsed()), Relaxed);
        }
        let order = self.wait_for_start();
        if order == Order::GoOn {
            if number == 0 {
                page.started_ns.store(ns(self.plan.begun.elapsed()), Relaxed);
            }
            // None spins before all have come so far: thousands would take many seconds for a slice each.
            thread::yield_now();
        }
        order
    }

    /// Waits for the start, then runs Linux until the parent's signal ends it: it is not to end in any other way.
    fn run_linux(&self, plan: &LinuxPlan, machine: Machine) {
        if self.settle(0) == Order::GoOn {
            let failure = machine.run(plan, self.place, self.page(0));
            self.die(0, failure);
        }
    }

    /// Waits for the start, then runs the vCPU until the guest has left.
    fn run_vcpu(&self, number: u32, mut vcpu: VcpuFd) {
        if self.settle(number) == Order::Leave {
            return;
        }
        loop {
            match vcpu.run() {
                Ok(VcpuExit::IoOut(STOP_PORT, _)) => return,
                Ok(VcpuExit::Shutdown) if self.page(number).done.load(Relaxed) != 0 => return,
                Ok(VcpuExit::Intr) => {}
                Ok(
                    VcpuExit::IoOut(PIO_PORT, _)
                    | VcpuExit::IoIn(PIO_PORT, _)
                    | VcpuExit::MmioWrite(MMIO_GPA, _)
                    | VcpuExit::MmioRead(MMIO_GPA, _),
                ) => self.answer(),
                Ok(_) => {
                    let reason = vcpu.get_kvm_run().exit_reason;
                    self.die(number, Failure::exit(reason));
                }
                Err(e) if e.errno() == libc::EINTR || e.errno() == libc::EAGAIN => {}
                Err(e) => self.die(number, Failure::errno(Step::Run, e.errno())),
            }
        }
    }

    /// The VMM's part in an exit to userspace: to take its time. Nobody looks at what is written, and whoever reads
    /// gets what KVM has left in its buffer.
    fn answer(&self) {
        if !self.plan.vmm_sleep.is_zero() {
            thread::sleep(self.plan.vmm_sleep);
        }
    }
}

/// A virtual machine without anything in it.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, Failure> {
    let vm = loop {
        match kvm.create_vm() {
            Err(e) if e.errno() == libc::EINTR => {}
            result => break result.map_err(of_kvm(Step::CreateVm))?,
        }
    };
    vm.set_tss_address(image::KVM_TSS_GPA).map_err(of_kvm(Step::SetTssAddress))?;
    Ok(vm)
}

/// Gives the guest memory: a mapping of this process that is never unmapped.
pub(crate) fn set_slot(
    vm: &VmFd,
    slot: u32,
    gpa: u64,
    size: u64,
    memory: NonNull<u8>,
) -> Result<(), Failure> {
    let region = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: gpa,
        memory_size: size,
        userspace_addr: memory.as_ptr().addr() as u64,
    };
    // SAFETY: the mapping lives as long as this process, and none of it is memory that Rust code takes for its
    // own: pages of atomics, the image, or what only the guest uses.
    unsafe { vm.set_user_memory_region(region) }.map_err(of_kvm(Step::SetMemory))
}

/// A size in bytes as that of a mapping.
fn in_memory(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

pub(crate) fn of_kvm(step: Step) -> impl Fn(kvm_ioctls::Error) -> Failure {
    move |e| Failure::errno(step, e.errno())
}

pub(crate) fn of_io(step: Step) -> impl Fn(std::io::Error) -> Failure {
    move |e| Failure::errno(step, e.raw_os_error().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::*;

    #[test]
    fn only_amd_and_its_like_have_no_vmcall() {
        let [ebx, edx, ecx] = [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
        let leaf = |ebx| kvm_cpuid_entry2 { ebx, edx, ecx, ..Default::default() };
        let cpuid = |ebx| CpuId::from_entries(&[leaf(ebx)]).expect("CPUID");
        assert!(!knows_vmcall(&cpuid(ebx)));
        assert!(knows_vmcall(&cpuid(ebx + 1)));
    }

    #[test]
    fn names_have_four_digits_and_more_where_needed() {
        assert_eq!(name(0), "loadgen-0001");
        assert_eq!(name(6_416), "loadgen-6417");
        assert_eq!(name(19_999), "loadgen-20000");
    }
}
