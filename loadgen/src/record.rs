//! The page each vCPU shares with the parent: what the guest counts, what it is told, its steal time, TSS
//! and stacks. The one definition that both Rust and the guest's assembly (code.rs) use.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::exits::ExitKind;
use crate::memory::PageKind;

/// Size of a page, and of everything that is mapped for one vCPU.
pub(crate) const PAGE_SIZE: usize = 4096;

/// Space for what guest code pushes in ring 3: return addresses, a few bytes.
const USER_STACK_SIZE: usize = 256;

/// One vCPU's page. The guest writes the counters; the parent reads them while it runs, and after it died.
#[repr(C, align(4096))]
pub(crate) struct VcpuPage {
    /// Where KVM writes how long this vCPU has waited for a CPU.
    pub(crate) steal_time: StealTime,

    /// Set by the parent: leave as soon as you see this.
    pub(crate) stop: AtomicU32,

    /// Rounds of the workload's loop.
    pub(crate) iterations: AtomicU64,
    /// Timer interrupts handled.
    pub(crate) ticks: AtomicU64,
    /// Timer periods that passed without an interrupt of their own: KVM lets a late tick stand for several.
    pub(crate) ticks_missed: AtomicU64,
    /// The latest a tick came, in nanoseconds.
    pub(crate) latest_tick_ns: AtomicU64,
    /// Ticks by how late they came: bucket i has those that were 2^i to 2^(i+1) nanoseconds late, the first one those
    /// on time, too.
    pub(crate) late_ticks: [AtomicU64; u64::BITS as usize],
    /// HLT instructions executed.
    pub(crate) hlts: AtomicU64,
    /// `steal_time.steal` as the guest's first instruction read it, in nanoseconds: KVM counts from the birth
    /// of the vCPU's thread, which has waited while the guest was made.
    pub(crate) steal_at_start_ns: AtomicU64,
    /// `steal_time.steal` as the guest last read it, in nanoseconds.
    pub(crate) steal_ns: AtomicU64,

    /// Timer period in cycles of the APIC bus, which KVM runs at 1 GHz: nanoseconds. 0 if there is no timer.
    pub(crate) period_ns: AtomicU32,
    /// TSC cycles from one tick to the next.
    pub(crate) period_tsc: AtomicU64,
    /// How far apart the ticks are *expected*, in TSC cycles: a little more than `period_tsc` (see code.rs).
    pub(crate) grid_tsc: AtomicU64,
    /// TSC cycles to burn in each period.
    pub(crate) burn_tsc: AtomicU64,
    /// TSC cycles in a nanosecond, as a 32.32 fixed-point number.
    pub(crate) tsc_per_ns: AtomicU64,
    /// Nanoseconds in a TSC cycle, likewise.
    pub(crate) ns_per_tsc: AtomicU64,

    /// `exits` guests set it right before they leave: the triple fault that follows is meant.
    pub(crate) done: AtomicU32,
    /// Whether the processor knows VMCALL, not VMMCALL.
    pub(crate) vmcall: AtomicU32,
    /// The next page of the guest's own memory that this vCPU has not touched.
    pub(crate) fresh_gva: AtomicU64,
    /// What an `exits` guest is to do and has done, by [`ExitKind`].
    pub(crate) kinds: [KindRecord; ExitKind::NUMBER],
    /// The memory that the guest rewrites; on the page of vCPU 0 only.
    pub(crate) memory: MemoryRecord,

    /// The guest's process, and its number, counted from 0; on the page of vCPU 0 only.
    pub(crate) pid: AtomicU32,
    pub(crate) number: AtomicU32,
    /// The vCPU's thread.
    pub(crate) tid: AtomicU32,
    /// The guest's I/O thread, if it has one, and the CPU time it has had; on the page of vCPU 0 only.
    pub(crate) io_thread_tid: AtomicU32,
    pub(crate) io_thread_cpu_ns: AtomicU64,
    /// From the parent's fork until it was ready to run, in nanoseconds; on the page of vCPU 0 only.
    pub(crate) creation_ns: AtomicU64,
    /// When it had a CPU for the first time after it was let run, in nanoseconds since the fleet was made; 0 before that;
    /// on the page of vCPU 0 only.
    pub(crate) started_ns: AtomicU64,
    /// From the first instruction of a guest that boots Linux until it was ready, in nanoseconds; 0 before.
    pub(crate) boot_ns: AtomicU64,
    /// What went wrong: a [`Failure`] in two parts.
    failure_step: AtomicU32,
    failure_detail: AtomicU64,

    /// The task state segment, for the stack pointer of ring 0.
    pub(crate) tss: Tss,

    user_stack: [u64; USER_STACK_SIZE / 8],
    /// First byte above the ring-3 stack, then the interrupt stack up to the end of the page.
    pub(crate) user_stack_top: [u64; 0],
}

const _: () = assert!(size_of::<VcpuPage>() == PAGE_SIZE);

/// One kind of exits of an `exits` guest.
#[repr(C)]
pub(crate) struct KindRecord {
    /// Exits caused.
    pub(crate) done: AtomicU64,
    /// Exits to cause.
    pub(crate) count: AtomicU64,
    /// TSC cycles from one to the next; 0 for as fast as possible.
    pub(crate) period_tsc: AtomicU64,
    /// When the next is due (TSC); the guest's own.
    pub(crate) due_tsc: AtomicU64,
}

/// What a guest that rewrites its memory is to do and has done. Pages are counted from 0.
#[repr(C)]
pub(crate) struct MemoryRecord {
    /// Address of the code that rewrites what is due; 0 if nothing ever is.
    pub(crate) rewriter: AtomicU64,
    /// First page that is not a duplicate one, first page that is neither a duplicate nor a zero page, number of pages.
    pub(crate) duplicate_end: AtomicU64,
    pub(crate) zero_end: AtomicU64,
    pub(crate) end: AtomicU64,
    /// The page to rewrite next, and how far it is from each to its next: so every page has its turn, and none twice
    /// before all have had theirs.
    pub(crate) next: AtomicU64,
    pub(crate) stride: AtomicU64,
    /// TSC cycles from one rewrite to the next; 0 for as fast as possible.
    pub(crate) period_tsc: AtomicU64,
    /// When the next is due (TSC); the guest's own.
    pub(crate) due_tsc: AtomicU64,
    /// Rewrites to do, which the parent raises, and rewrites done.
    pub(crate) goal: AtomicU64,
    pub(crate) all: AtomicU64,
    /// Those done by [`PageKind`].
    pub(crate) rewrites: [AtomicU64; PageKind::NUMBER],
}

/// `struct kvm_steal_time` of arch/x86/include/uapi/asm/kvm_para.h.
#[repr(C, align(64))]
pub(crate) struct StealTime {
    /// Nanoseconds this vCPU's thread was runnable but did not run, as KVM took them from `run_delay`.
    pub(crate) steal: AtomicU64,
    version: AtomicU32,
    flags: AtomicU32,
    preempted: AtomicU32,
    pad: [AtomicU32; 11],
}

const _: () = assert!(size_of::<StealTime>() == 64);

/// The 64-bit task state segment; only RSP0 is ever used.
#[repr(C)]
pub(crate) struct Tss {
    reserved: AtomicU32,
    /// RSP0 in two halves: the processor has it at offset 4.
    pub(crate) rsp0: [AtomicU32; 2],
    rest: [AtomicU32; 23],
}

const _: () = assert!(size_of::<Tss>() == 104);

impl VcpuPage {
    /// Says what went wrong. The first failure is kept: what follows is a consequence of it.
    pub(crate) fn fail(&self, failure: Failure) {
        if self.failure_step.load(Relaxed) == 0 {
            self.failure_detail.store(failure.detail, Relaxed);
            self.failure_step.store(failure.step as u32, Relaxed);
        }
    }

    /// What went wrong, if anything did.
    pub(crate) fn failure(&self) -> Option<Failure> {
        let step = Step::from_code(self.failure_step.load(Relaxed))?;
        let detail = self.failure_detail.load(Relaxed);
        Some(Failure { step, detail })
    }

    /// The buckets of `late_ticks` that are not empty: from and below how many nanoseconds late, and how many ticks.
    pub(crate) fn late_ticks(&self) -> Vec<[u64; 3]> {
        let buckets = self.late_ticks.iter().map(|bucket| bucket.load(Relaxed));
        let rows = (0..).zip(buckets).map(|(bit, count)| {
            let lo_ns = if bit == 0 { 0 } else { 1 << bit };
            let hi_ns = 2_u64.checked_shl(bit).filter(|hi| *hi > 0).unwrap_or(u64::MAX);
            [lo_ns, hi_ns, count]
        });
        rows.filter(|[_, _, count]| *count > 0).collect()
    }
}

/// Declares [`Step`] and what each step is called in a sentence.
macro_rules! steps {
    ($($(#[$doc:meta])* $step:ident = $code:literal $text:literal,)*) => {
        /// What a guest was doing when it failed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Step { $($(#[$doc])* $step = $code,)* }

        impl Step {
            fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$step),)*
                    _ => None,
                }
            }

            fn text(self) -> &'static str {
                match self { $(Self::$step => $text,)* }
            }
        }
    };
}

steps! {
    JoinCgroup = 1 "join the cgroup",
    Detach = 2 "close inherited files",
    CreateVm = 3 "KVM_CREATE_VM",
    CreateIrqchip = 4 "KVM_CREATE_IRQCHIP",
    SetTssAddress = 5 "KVM_SET_TSS_ADDR",
    MapMemory = 6 "map guest memory",
    SetMemory = 7 "KVM_SET_USER_MEMORY_REGION",
    CreateVcpu = 8 "KVM_CREATE_VCPU",
    SetRegisters = 9 "KVM_SET_SREGS",
    SetState = 10 "KVM_SET_MP_STATE",
    EnableSteal = 11 "KVM_SET_MSRS",
    GetTsc = 12 "KVM_GET_TSC_KHZ",
    StartThread = 13 "start a thread",
    Run = 14 "KVM_RUN",
    /// KVM_RUN came back with an exit reason that no guest of ours should cause: the detail is the reason.
    Exit = 15 "KVM_RUN",
    SetCpuid = 16 "KVM_SET_CPUID2",
    Bind = 17 "set the CPUs to run on",
    AllowMerging = 18 "make memory mergeable (MADV_MERGEABLE)",
    BindMemory = 19 "set the NUMA node to get memory from",
    SetPriority = 20 "set nice value and scheduling policy",
    CreatePit = 21 "KVM_CREATE_PIT2",
    LoadKernel = 22 "load the kernel",
    OpenConsole = 23 "make the file of its console",
    WriteConsole = 24 "write to the file of its console",
    RaiseInterrupt = 25 "KVM_IRQ_LINE",
    /// The guest asked for it: there is no detail.
    Reset = 26 "run on",
    SwitchOff = 27 "run on",
}

/// Why a guest ended before it was told to. It crosses from process to process as two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    step: Step,
    /// An errno, or for [`Step::Exit`] a KVM exit reason.
    detail: u64,
}

impl Failure {
    /// A system call that failed.
    pub(crate) fn errno(step: Step, errno: i32) -> Self {
        let detail = u64::from(errno.unsigned_abs());
        Self { step, detail }
    }

    /// An exit that should not happen: `reason` is one of KVM_EXIT_*.
    pub(crate) fn exit(reason: u32) -> Self {
        let detail = u64::from(reason);
        Self { step: Step::Exit, detail }
    }

    /// What the guest asked for: [`Step::Reset`] or [`Step::SwitchOff`].
    pub(crate) fn wanted(step: Step) -> Self {
        Self { step, detail: 0 }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Step::Reset => return f.write_str("reset itself"),
            Step::SwitchOff => return f.write_str("switched itself off"),
            _ => {}
        }
        if self.step == Step::Exit {
            return match self.detail {
                8 => f.write_str("KVM_EXIT_SHUTDOWN (triple fault)"),
                9 => f.write_str("KVM_EXIT_FAIL_ENTRY"),
                17 => f.write_str("KVM_EXIT_INTERNAL_ERROR"),
                reason => write!(f, "unexpected KVM exit reason {reason}"),
            };
        }
        let errno = i32::try_from(self.detail).unwrap_or_default();
        let cause = io::Error::from_raw_os_error(errno);
        write!(f, "failed to {}: {cause}", self.step.text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_read_as_sentences() {
        let failure = Failure::errno(Step::CreateVm, libc::ENOMEM);
        let text = failure.to_string();
        assert!(text.starts_with("failed to KVM_CREATE_VM: Cannot allocate memory"), "{text}");
        let text = Failure::exit(8).to_string();
        assert_eq!(text, "KVM_EXIT_SHUTDOWN (triple fault)");
        assert_eq!(Failure::wanted(Step::Reset).to_string(), "reset itself");
    }

    #[test]
    fn buckets_are_powers_of_two_without_gaps() {
        // SAFETY: a page of zeroes is a valid record: it has only integers.
        let page: VcpuPage = unsafe { std::mem::zeroed() };
        assert!(page.late_ticks().is_empty());
        for (bit, count) in [(0, 23), (1, 101), (63, 7)] {
            page.late_ticks[bit].store(count, Relaxed);
        }
        assert_eq!(page.late_ticks(), [[0, 2, 23], [2, 4, 101], [1 << 63, u64::MAX, 7]]);
        page.late_ticks.iter().for_each(|bucket| bucket.store(1, Relaxed));
        assert!(page.late_ticks().windows(2).all(|pair| pair[0][1] == pair[1][0]));
    }

    #[test]
    fn the_first_failure_is_kept() {
        // SAFETY: a page of zeroes is a valid record: it has only integers.
        let page: VcpuPage = unsafe { std::mem::zeroed() };
        assert_eq!(page.failure(), None);
        let first = Failure::exit(17);
        page.fail(first);
        page.fail(Failure::errno(Step::Run, libc::EFAULT));
        assert_eq!(page.failure(), Some(first));
    }
}
