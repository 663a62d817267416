//! The guests' code: position-independent assembly, copied into the image that all guests share. (What `exits`
//! guests run is in exits_code.rs, and what rewrites memory in memory_code.rs.)
//!
//! It runs in ring 3 of long mode wherever it can, because some hypervisors (PVM) run ring 3 natively but
//! emulate ring 0 one instruction at a time: ring 0 is the two short interrupt handlers at the end.
//!
//! Registers that always hold the same: `r15` the vCPU's page, `r14` the local APIC.

use std::arch::global_asm;
use std::mem::offset_of;
use std::slice;

use crate::exits_code;
use crate::record::{PAGE_SIZE, VcpuPage};
use crate::workload::Workload;

/// The vector of the timer interrupt.
pub(crate) const TICK_VECTOR: u8 = 0x20;
/// The exception of INT3, by which ring 3 asks ring 0 for something: to halt until the next tick, say. INT with
/// another vector would be the obvious way, but PVM turns that into a fault.
pub(crate) const INT3_VECTOR: u8 = 3;
/// A write to this port says: I have seen the stop flag, do not run me again.
pub(crate) const STOP_PORT: u16 = 0xf4;

/// Turns of the inner loop between two looks at the stop flag: some 20 µs.
const SPINS: u32 = 1 << 16;

// Local APIC registers and their values (Intel SDM volume 3, chapter "APIC").
pub(crate) const APIC_EOI: u32 = 0xb0;
pub(crate) const APIC_SPURIOUS: u32 = 0xf0;
pub(crate) const APIC_LVT_TIMER: u32 = 0x320;
pub(crate) const APIC_TIMER_COUNT: u32 = 0x380;
pub(crate) const APIC_TIMER_DIVIDE: u32 = 0x3e0;
pub(crate) const APIC_ENABLED: u32 = 0x1ff;
pub(crate) const APIC_DIVIDE_BY_1: u32 = 0xb;
const APIC_PERIODIC: u32 = 1 << 17 | TICK_VECTOR as u32;
const APIC_MASKED: u32 = 1 << 16 | APIC_PERIODIC;

global_asm!(
    // Data as far as the host is concerned.
    ".pushsection .rodata.loadgen_guest, \"a\", @progbits",
    ".globl loadgen_guest_begin, loadgen_guest_spin, loadgen_guest_timed",
    ".globl loadgen_guest_on_tick, loadgen_guest_on_wait, loadgen_guest_end",
    "loadgen_guest_begin:",

    // ---- spin: burn, count, look at the stop flag
    "loadgen_guest_spin:",
    "   mov rax, [r15 + {STEAL_TIME}]",
    "   mov [r15 + {STEAL_AT_START_NS}], rax",
    "1: mov ecx, {SPINS}",
    "2: dec ecx",
    "   jnz 2b",
    "   inc qword ptr [r15 + {ITERATIONS}]",
    "   mov rax, [r15 + {STEAL_TIME}]",
    "   mov [r15 + {STEAL_NS}], rax",
    "   cmp qword ptr [r15 + {REWRITER}], 0",
    "   je 2f",
    "   call qword ptr [r15 + {REWRITER}]",
    "2: cmp dword ptr [r15 + {STOP}], 0",
    "   je 1b",

    // ---- leave for good; the VMM does not come back, but if it did, nothing else would run
    "3: out {STOP_PORT}, al",
    "   jmp 3b",

    // ---- timed: each period burn a share (none for idle), then halt until the tick
    //
    // rbx   when the next tick is due (TSC)
    // r13   ticks whose lateness has been noted
    // r12   ticks there had been when this period began
    "loadgen_guest_timed:",
    "   mov rax, [r15 + {STEAL_TIME}]",
    "   mov [r15 + {STEAL_AT_START_NS}], rax",
    "   mov dword ptr [r14 + {APIC_SPURIOUS}], {APIC_ENABLED}",
    "   mov dword ptr [r14 + {APIC_TIMER_DIVIDE}], {APIC_DIVIDE_BY_1}",
    "   mov dword ptr [r14 + {APIC_LVT_TIMER}], {APIC_PERIODIC}",
    "   mov eax, [r15 + {PERIOD_NS}]",
    "   mov [r14 + {APIC_TIMER_COUNT}], eax", // arms it
    "   rdtsc",
    "   shl rdx, 32",
    "   or rax, rdx",
    "   add rax, [r15 + {GRID_TSC}]",
    "   mov rbx, rax",
    "   xor r13d, r13d",
    "   xor r12d, r12d",

    // Begin a period: r8 = now, r9 = steal, read so that no wait falls between the two.
    "4: mov r9, [r15 + {STEAL_TIME}]",
    "   rdtsc",
    "   cmp r9, [r15 + {STEAL_TIME}]",
    "   jne 4b",
    "   shl rdx, 32",
    "   or rax, rdx",
    "   mov r8, rax",
    "   cmp qword ptr [r15 + {REWRITER}], 0",
    "   je 5f",
    "   call qword ptr [r15 + {REWRITER}]", // a part of the share

    // Burn *CPU time*: what the clock says less what was stolen since. The clock is read first: a wait
    // between the two reads makes this round's sum too small, and the next one puts it right.
    "5: rdtsc",
    "   shl rdx, 32",
    "   or rax, rdx",
    "   sub rax, r8",
    "   mov r11, rax",
    "   mov rax, [r15 + {STEAL_TIME}]",
    "   sub rax, r9",
    "   mul qword ptr [r15 + {TSC_PER_NS}]",
    "   shrd rax, rdx, 32",
    "   sub r11, rax",
    "   call 7f", // a tick may have interrupted us
    "   cmp r11, [r15 + {BURN_TSC}]",
    "   jl 5b",

    "   inc qword ptr [r15 + {ITERATIONS}]",
    "   mov rax, [r15 + {STEAL_TIME}]",
    "   mov [r15 + {STEAL_NS}], rax",
    "   cmp dword ptr [r15 + {STOP}], 0",
    "   jne 6f",
    "   int3", // returns at once if burning overran the tick
    "   mov r12, [r15 + {TICKS}]",
    "   call 7f",
    "   jmp 4b",

    // Leave with every tick noted: after the write to the APIC none comes any more.
    "6: mov dword ptr [r14 + {APIC_LVT_TIMER}], {APIC_MASKED}",
    "   call 7f",
    "   jmp 3b",

    // ---- note how late the ticks since the last call came
    //
    // All reads of the clock are made in ring 3, because ring 0's may differ where it is emulated. The grid
    // of expected ticks is calibrated by the earliest ones: a tick before its time moves the grid back to
    // now. The other way round the grid creeps forward by 2^-14 of a period per period, so that a TSC that
    // runs up to 61 ppm too fast cannot pile up a lateness that is not there.
    //
    // Of ticks noted together the first is late since the grid said; KVM made the others after it, for the
    // time since then, so they are late since the last point of the grid.
    "7: mov rcx, [r15 + {TICKS}]",
    "   mov rsi, rcx",
    "   sub rcx, r13", // ticks to note
    "   jz 9f",
    "   mov r13, rsi",
    "   rdtsc",
    "   shl rdx, 32",
    "   or rax, rdx",
    "   mov rsi, rax",
    "   sub rax, rbx", // late by
    "   jb 8f",
    "   mov rsi, rax",
    "   xor edx, edx",
    "   div qword ptr [r15 + {PERIOD_TSC}]",
    "   mov rbp, rdx", // late by, since the last point
    "   inc rax", // points of the grid that have passed
    "   mov rdx, rax",
    "   imul rdx, [r15 + {GRID_TSC}]",
    "   add rbx, rdx",
    "   sub rax, rcx", // those without a tick of their own
    "   jle 2f",
    "   add [r15 + {TICKS_MISSED}], rax",
    "2: mov rax, rsi",
    "   mov edi, 1",
    "   call 6f",
    "   mov rax, rbp",
    "   mov rdi, rcx",
    "   dec rdi",
    "   jnz 6f",
    "   ret",
    "8: add rsi, [r15 + {GRID_TSC}]",
    "   mov rbx, rsi",
    "   xor eax, eax",
    "   mov rdi, rcx",

    // rdi ticks were late by rax TSC cycles: into the bucket of the highest bit of so many nanoseconds.
    "6: mul qword ptr [r15 + {NS_PER_TSC}]",
    "   shrd rax, rdx, 32",
    "   cmp rax, [r15 + {LATEST_TICK_NS}]",
    "   jbe 5f",
    "   mov [r15 + {LATEST_TICK_NS}], rax",
    "5: or rax, 1", // 0 has no bit: it goes with 1
    "   bsr rax, rax",
    "   add [r15 + rax * 8 + {LATE_TICKS}], rdi",
    "9: ret",

    // ---- ring 0: the timer interrupt, from ring 3 or from the HLT below
    "loadgen_guest_on_tick:",
    "   inc qword ptr [r15 + {TICKS}]",
    "   mov dword ptr [r14 + {APIC_EOI}], 0",
    "   iretq",

    // ---- ring 0: halt, unless there has been a tick since this period began. Interrupts are off up to the
    // HLT itself (STI takes effect one instruction later), so no tick can slip in between and be slept over.
    "loadgen_guest_on_wait:",
    "   cmp r12, [r15 + {TICKS}]",
    "   jne 2f",
    "   inc qword ptr [r15 + {HLTS}]",
    "   sti",
    "   hlt",
    "2: iretq",

    "loadgen_guest_end:",
    ".popsection",

    SPINS = const SPINS,
    STOP_PORT = const STOP_PORT,
    STOP = const offset_of!(VcpuPage, stop),
    REWRITER = const offset_of!(VcpuPage, memory.rewriter),
    STEAL_TIME = const offset_of!(VcpuPage, steal_time.steal),
    STEAL_AT_START_NS = const offset_of!(VcpuPage, steal_at_start_ns),
    STEAL_NS = const offset_of!(VcpuPage, steal_ns),
    ITERATIONS = const offset_of!(VcpuPage, iterations),
    TICKS = const offset_of!(VcpuPage, ticks),
    TICKS_MISSED = const offset_of!(VcpuPage, ticks_missed),
    LATEST_TICK_NS = const offset_of!(VcpuPage, latest_tick_ns),
    LATE_TICKS = const offset_of!(VcpuPage, late_ticks),
    HLTS = const offset_of!(VcpuPage, hlts),
    PERIOD_NS = const offset_of!(VcpuPage, period_ns),
    PERIOD_TSC = const offset_of!(VcpuPage, period_tsc),
    GRID_TSC = const offset_of!(VcpuPage, grid_tsc),
    BURN_TSC = const offset_of!(VcpuPage, burn_tsc),
    TSC_PER_NS = const offset_of!(VcpuPage, tsc_per_ns),
    NS_PER_TSC = const offset_of!(VcpuPage, ns_per_tsc),
    APIC_EOI = const APIC_EOI,
    APIC_SPURIOUS = const APIC_SPURIOUS,
    APIC_LVT_TIMER = const APIC_LVT_TIMER,
    APIC_TIMER_COUNT = const APIC_TIMER_COUNT,
    APIC_TIMER_DIVIDE = const APIC_TIMER_DIVIDE,
    APIC_ENABLED = const APIC_ENABLED,
    APIC_DIVIDE_BY_1 = const APIC_DIVIDE_BY_1,
    APIC_PERIODIC = const APIC_PERIODIC,
    APIC_MASKED = const APIC_MASKED,
);

unsafe extern "C" {
    static loadgen_guest_begin: u8;
    static loadgen_guest_spin: u8;
    static loadgen_guest_timed: u8;
    static loadgen_guest_on_tick: u8;
    static loadgen_guest_on_wait: u8;
    static loadgen_guest_end: u8;
}

/// Where the code of `exits` guests begins, in bytes from the beginning of the page of code.
pub(crate) const EXITS_OFFSET: usize = PAGE_SIZE / 2;
/// Where the code that rewrites memory begins.
pub(crate) const MEMORY_OFFSET: usize = PAGE_SIZE / 4 * 3;

/// Where things are in the page of code.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entry {
    /// `spin`.
    Spin,
    /// `idle` and `duty`.
    Timed,
    /// The handler of [`TICK_VECTOR`] for `idle` and `duty`.
    OnTick,
    /// The handler of [`INT3_VECTOR`] for `idle` and `duty`.
    OnWait,
    /// `exits`.
    Exits,
    /// The handler of [`TICK_VECTOR`] for `exits`.
    OnWake,
    /// The handler of [`INT3_VECTOR`] for `exits`.
    OnRequest,
    /// What vCPU 0 of a guest that rewrites its memory calls in each round.
    Rewriter,
}

impl Entry {
    /// Where a vCPU starts.
    pub(crate) fn first(workload: Workload) -> Self {
        match workload {
            Workload::Spin | Workload::Linux => Self::Spin,
            Workload::Idle { .. } | Workload::Duty { .. } => Self::Timed,
            Workload::Exits(_) => Self::Exits,
        }
    }

    /// The handler of [`TICK_VECTOR`].
    pub(crate) fn on_tick(workload: Workload) -> Self {
        match workload {
            Workload::Exits(_) => Self::OnWake,
            Workload::Spin | Workload::Idle { .. } | Workload::Duty { .. } | Workload::Linux => {
                Self::OnTick
            }
        }
    }

    /// The handler of [`INT3_VECTOR`].
    pub(crate) fn on_int3(workload: Workload) -> Self {
        match workload {
            Workload::Exits(_) => Self::OnRequest,
            Workload::Spin | Workload::Idle { .. } | Workload::Duty { .. } | Workload::Linux => {
                Self::OnWait
            }
        }
    }

    /// Bytes from the beginning of the page of code.
    pub(crate) fn offset(self) -> usize {
        let symbol = match self {
            Self::Spin => &raw const loadgen_guest_spin,
            Self::Timed => &raw const loadgen_guest_timed,
            Self::OnTick => &raw const loadgen_guest_on_tick,
            Self::OnWait => &raw const loadgen_guest_on_wait,
            Self::Exits => return EXITS_OFFSET,
            Self::OnWake => return EXITS_OFFSET + exits_code::on_wake(),
            Self::OnRequest => return EXITS_OFFSET + exits_code::on_request(),
            Self::Rewriter => return MEMORY_OFFSET,
        };
        symbol.addr() - (&raw const loadgen_guest_begin).addr()
    }
}

/// The machine code of all workloads but `exits`.
pub(crate) fn code() -> &'static [u8] {
    let begin = &raw const loadgen_guest_begin;
    let length = (&raw const loadgen_guest_end).addr() - begin.addr();
    // SAFETY: both symbols are in the same section above, and all between them is initialised data.
    unsafe { slice::from_raw_parts(begin, length) }
}
