//! The code of `exits` guests: causes what it was told to, counts it, and leaves.
//!
//! Nothing in it may cause an exit of a kind that is counted but for the one instruction that is meant to.
//! That is why it does not leave by the stop port, which would be one more exit by port I/O, but by a triple
//! fault after having marked itself as done; why it waits without PAUSE, which some hosts intercept; and why
//! the timer is armed for one HLT at a time.
//!
//! `r15` is the vCPU's page, `r14` the local APIC (there is one only with `hlt`), as in code.rs.

use std::arch::global_asm;
use std::mem::offset_of;
use std::slice;

use crate::code::{
    APIC_DIVIDE_BY_1, APIC_ENABLED, APIC_EOI, APIC_LVT_TIMER, APIC_SPURIOUS, APIC_TIMER_COUNT,
    APIC_TIMER_DIVIDE, TICK_VECTOR,
};
use crate::exits::ExitKind;
use crate::image;
use crate::record::{KindRecord, PAGE_SIZE, VcpuPage};

/// The port that `pio` writes and reads: nothing in the kernel handles it.
pub(crate) const PIO_PORT: u16 = 0xf5;
/// `msr`: IA32_MCG_STATUS. Intel and AMD have it, KVM only remembers it, and no guest gets the real one.
const MSR: u32 = 0x17a;
/// `hypercall`: KVM_HC_VAPIC_POLL_IRQ of include/uapi/linux/kvm_para.h, which does nothing and returns 0.
const HYPERCALL: u32 = 1;
/// How many exits of a paced kind may be made up for at a time: then it is the other kinds' turn. A HLT
/// of 1 ms leaves that many due at 16 kHz.
const BURST: u32 = 16;
/// The timer's interrupt comes once (bit 17 would make it periodic).
const APIC_ONE_SHOT: u32 = TICK_VECTOR as u32;

global_asm!(
    // Data as far as the host is concerned.
    ".pushsection .rodata.loadgen_exits, \"a\", @progbits",
    ".globl loadgen_exits_begin, loadgen_exits_on_request, loadgen_exits_on_wake, loadgen_exits_end",
    "loadgen_exits_begin:",
    "   mov rax, [r15 + {STEAL_TIME}]",
    "   mov [r15 + {STEAL_AT_START_NS}], rax",
    "   cmp dword ptr [r15 + {PERIOD_NS}], 0",
    "   je 1f",
    "   mov dword ptr [r14 + {APIC_SPURIOUS}], {APIC_ENABLED}",
    "   mov dword ptr [r14 + {APIC_TIMER_DIVIDE}], {APIC_DIVIDE_BY_1}",
    "   mov dword ptr [r14 + {APIC_LVT_TIMER}], {APIC_ONE_SHOT}",
    // All kinds are due at once.
    "1: rdtsc",
    "   shl rdx, 32",
    "   or rax, rdx",
    "   mov ecx, {KINDS_SIZE}",
    "2: sub ecx, {KIND_SIZE}",
    "   mov [r15 + rcx + {KINDS} + {DUE_TSC}], rax",
    "   jnz 2b",

    // ---- a round: one of each kind that is not paced, of the others what is due
    //
    // r8    now (TSC)
    // rbp   the kind's record; r12 its number
    // r13   kinds of which some are left
    // r9    how many more of this kind may be done in this round
    "3: inc qword ptr [r15 + {ITERATIONS}]",
    "   mov rax, [r15 + {STEAL_TIME}]",
    "   mov [r15 + {STEAL_NS}], rax",
    "   cmp qword ptr [r15 + {REWRITER}], 0",
    "   je 4f",
    "   call qword ptr [r15 + {REWRITER}]",
    "4: cmp dword ptr [r15 + {STOP}], 0",
    "   jne 8f",
    "   rdtsc",
    "   shl rdx, 32",
    "   or rax, rdx",
    "   mov r8, rax",
    "   lea rbp, [r15 + {KINDS}]",
    "   xor r12d, r12d",
    "   xor r13d, r13d",

    "4: mov rax, [rbp + {DONE}]",
    "   cmp rax, [rbp + {COUNT}]",
    "   jae 7f",
    "   inc r13d",
    "   mov r9d, {BURST}",
    "5: cmp [rbp + {DUE_TSC}], r8",
    "   ja 7f",
    "   lea rdi, [rip + 20f]",
    "   movsxd rax, dword ptr [rdi + r12 * 4]",
    "   add rdi, rax",
    "   mov rcx, [rbp + {DONE}]", // for those who do two things in turn
    "   call rdi",
    "   inc qword ptr [rbp + {DONE}]",
    "   cmp dword ptr [r15 + {STOP}], 0",
    "   jne 8f",
    "   mov rax, [rbp + {PERIOD_TSC}]",
    "   test rax, rax",
    "   jz 7f",
    "   add [rbp + {DUE_TSC}], rax",
    "   mov rax, [rbp + {DONE}]",
    "   cmp rax, [rbp + {COUNT}]",
    "   jae 7f",
    "   dec r9d",
    "   jnz 5b",

    "7: add rbp, {KIND_SIZE}",
    "   inc r12d",
    "   cmp r12d, {KINDS_NUMBER}",
    "   jb 4b",
    "   test r13d, r13d",
    "   jnz 3b",

    // ---- leave for good: no exception has a gate in the IDT
    "8: mov rax, [r15 + {STEAL_TIME}]",
    "   mov [r15 + {STEAL_NS}], rax",
    "   mov dword ptr [r15 + {DONE_MARK}], 1",
    "9: ud2",
    "   jmp 9b",

    // ---- the kinds, in their order; all registers but those above are theirs
    ".balign 4",
    "20: .long 21f - 20b, 22f - 20b, 23f - 20b, 24f - 20b, 25f - 20b, 26f - 20b, 27f - 20b",

    "21: test cl, 1",
    "   jnz 2f",
    "   out {PIO_PORT}, al",
    "   ret",
    "2: in al, {PIO_PORT}",
    "   ret",

    "22: mov edi, {MMIO_GVA}",
    "   test cl, 1",
    "   jnz 2f",
    "   mov [rdi], eax",
    "   ret",
    "2: mov eax, [rdi]",
    "   ret",

    "23: lea rdi, [rip + 33f]",
    "   int3",
    "   ret",

    "24: lea rdi, [rip + 34f]",
    "   lea rax, [rip + 35f]",
    "   test cl, 1",
    "   cmovnz rdi, rax",
    "   int3",
    "   ret",

    "25: lea rdi, [rip + 36f]",
    "   lea rax, [rip + 37f]",
    "   cmp dword ptr [r15 + {VMCALL}], 0",
    "   cmovne rdi, rax",
    "   int3",
    "   ret",

    "26: lea rdi, [rip + 38f]",
    "   int3",
    "   ret",

    "27: mov rdi, [r15 + {FRESH_GVA}]",
    "   mov [rdi], rdi",
    "   add qword ptr [r15 + {FRESH_GVA}], {PAGE_SIZE}",
    "   ret",

    // ---- ring 0: do what ring 3 asks for, by address. CPUID needs ring 0 only under PVM, where the
    // processor would answer ring 3 by itself.
    "loadgen_exits_on_request:",
    "   jmp rdi",

    // ---- ring 0: the timer's interrupt, from the HLT below. If it came before the HLT, another one must: that
    // is what STI should prevent by taking effect one instruction later, but emulated processors (QEMU) forget it.
    "loadgen_exits_on_wake:",
    "   push rax",
    "   lea rax, [rip + 39f]",
    "   cmp [rsp + 8], rax", // where it will return to
    "   jne 2f",
    "   mov eax, [r15 + {PERIOD_NS}]",
    "   mov [r14 + {APIC_TIMER_COUNT}], eax",
    "2: pop rax",
    "   mov dword ptr [r14 + {APIC_EOI}], 0",
    "   iretq",

    "33: xor eax, eax",
    "   xor ecx, ecx",
    "   cpuid",
    "   iretq",

    "34: mov ecx, {MSR}",
    "   rdmsr",
    "   iretq",

    "35: mov ecx, {MSR}",
    "   xor eax, eax",
    "   xor edx, edx",
    "   wrmsr",
    "   iretq",

    // KVM overwrites the wrong one of these two with the right one, in memory that all guests share.
    "36: mov eax, {HYPERCALL}",
    "   vmmcall",
    "   iretq",

    "37: mov eax, {HYPERCALL}",
    "   vmcall",
    "   iretq",

    // Interrupts are off up to the HLT itself.
    "38: mov eax, [r15 + {PERIOD_NS}]",
    "   mov [r14 + {APIC_TIMER_COUNT}], eax",
    "   sti",
    "39: hlt",
    "   iretq",

    "loadgen_exits_end:",
    ".popsection",

    STOP = const offset_of!(VcpuPage, stop),
    REWRITER = const offset_of!(VcpuPage, memory.rewriter),
    STEAL_TIME = const offset_of!(VcpuPage, steal_time.steal),
    STEAL_AT_START_NS = const offset_of!(VcpuPage, steal_at_start_ns),
    STEAL_NS = const offset_of!(VcpuPage, steal_ns),
    ITERATIONS = const offset_of!(VcpuPage, iterations),
    PERIOD_NS = const offset_of!(VcpuPage, period_ns),
    DONE_MARK = const offset_of!(VcpuPage, done),
    VMCALL = const offset_of!(VcpuPage, vmcall),
    FRESH_GVA = const offset_of!(VcpuPage, fresh_gva),
    KINDS = const offset_of!(VcpuPage, kinds),
    KINDS_SIZE = const size_of::<[KindRecord; ExitKind::NUMBER]>(),
    KINDS_NUMBER = const ExitKind::NUMBER,
    KIND_SIZE = const size_of::<KindRecord>(),
    DONE = const offset_of!(KindRecord, done),
    COUNT = const offset_of!(KindRecord, count),
    PERIOD_TSC = const offset_of!(KindRecord, period_tsc),
    DUE_TSC = const offset_of!(KindRecord, due_tsc),
    BURST = const BURST,
    PIO_PORT = const PIO_PORT,
    MMIO_GVA = const image::MMIO_GVA,
    MSR = const MSR,
    HYPERCALL = const HYPERCALL,
    PAGE_SIZE = const PAGE_SIZE,
    APIC_EOI = const APIC_EOI,
    APIC_SPURIOUS = const APIC_SPURIOUS,
    APIC_LVT_TIMER = const APIC_LVT_TIMER,
    APIC_TIMER_COUNT = const APIC_TIMER_COUNT,
    APIC_TIMER_DIVIDE = const APIC_TIMER_DIVIDE,
    APIC_ENABLED = const APIC_ENABLED,
    APIC_DIVIDE_BY_1 = const APIC_DIVIDE_BY_1,
    APIC_ONE_SHOT = const APIC_ONE_SHOT,
);

unsafe extern "C" {
    static loadgen_exits_begin: u8;
    static loadgen_exits_on_request: u8;
    static loadgen_exits_on_wake: u8;
    static loadgen_exits_end: u8;
}

/// Where the handler of INT3 is, in bytes from the beginning of this code. Everything starts at its first byte.
pub(crate) fn on_request() -> usize {
    (&raw const loadgen_exits_on_request).addr() - (&raw const loadgen_exits_begin).addr()
}

/// Where the handler of the timer's interrupt is.
pub(crate) fn on_wake() -> usize {
    (&raw const loadgen_exits_on_wake).addr() - (&raw const loadgen_exits_begin).addr()
}

/// The machine code.
pub(crate) fn code() -> &'static [u8] {
    let begin = &raw const loadgen_exits_begin;
    let length = (&raw const loadgen_exits_end).addr() - begin.addr();
    // SAFETY: both symbols are in the same section above, and all between them is initialised data.
    unsafe { slice::from_raw_parts(begin, length) }
}
