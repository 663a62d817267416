//! The code that rewrites a guest's memory, which the loops of all workloads call (code.rs, exits_code.rs) on vCPU 0.
//!
//! A rewrite is one instruction that reads and writes a word of the page, so one fault where the page is merged. It adds
//! 1 to the count that a unique page has of its rewrites; to other pages it adds 0: they stay what they are.
//!
//! `r15` is the vCPU's page. The callers' rbx, r8, r9, r12, r13 and r14 are left alone.

use std::arch::global_asm;
use std::mem::offset_of;
use std::slice;

use crate::contents;
use crate::image;
use crate::record::{PAGE_SIZE, VcpuPage};

global_asm!(
    // Data as far as the host is concerned.
    ".pushsection .rodata.loadgen_memory, \"a\", @progbits",
    ".globl loadgen_memory_begin, loadgen_memory_end",
    "loadgen_memory_begin:",
    "   rdtsc",
    "   shl rdx, 32",
    "   or rax, rdx",
    "   mov rsi, rax", // now
    "   cmp qword ptr [r15 + {DUE_TSC}], 0",
    "   jne 1f",
    "   add rax, [r15 + {PERIOD_TSC}]", // the first call
    "   mov [r15 + {DUE_TSC}], rax",

    // What is due, unless it is time to leave.
    "1: mov rax, [r15 + {ALL}]",
    "   cmp rax, [r15 + {GOAL}]",
    "   jae 4f",
    "   cmp [r15 + {DUE_TSC}], rsi",
    "   ja 4f",
    "   cmp dword ptr [r15 + {STOP}], 0",
    "   jne 4f",

    // rcx is the kind of page rdx, rdi what to add.
    "   mov rdx, [r15 + {NEXT}]",
    "   xor ecx, ecx",
    "   xor edi, edi",
    "   cmp rdx, [r15 + {DUPLICATE_END}]",
    "   jb 2f",
    "   inc ecx",
    "   cmp rdx, [r15 + {ZERO_END}]",
    "   jb 2f",
    "   inc ecx",
    "   inc edi",
    "2: mov rax, rdx",
    "   shl rax, {PAGE_SHIFT}",
    "   mov r10, {MEMORY_GVA}",
    "   add [r10 + rax + {REWRITES_OFFSET}], rdi",
    "   inc qword ptr [r15 + rcx * 8 + {REWRITES}]",
    "   inc qword ptr [r15 + {ALL}]",
    "   mov rax, [r15 + {PERIOD_TSC}]",
    "   add [r15 + {DUE_TSC}], rax",
    "   add rdx, [r15 + {STRIDE}]",
    "   cmp rdx, [r15 + {END}]",
    "   jb 3f",
    "   sub rdx, [r15 + {END}]",
    "3: mov [r15 + {NEXT}], rdx",
    "   jmp 1b",
    "4: ret",
    "loadgen_memory_end:",
    ".popsection",

    STOP = const offset_of!(VcpuPage, stop),
    DUPLICATE_END = const offset_of!(VcpuPage, memory.duplicate_end),
    ZERO_END = const offset_of!(VcpuPage, memory.zero_end),
    END = const offset_of!(VcpuPage, memory.end),
    NEXT = const offset_of!(VcpuPage, memory.next),
    STRIDE = const offset_of!(VcpuPage, memory.stride),
    PERIOD_TSC = const offset_of!(VcpuPage, memory.period_tsc),
    DUE_TSC = const offset_of!(VcpuPage, memory.due_tsc),
    GOAL = const offset_of!(VcpuPage, memory.goal),
    ALL = const offset_of!(VcpuPage, memory.all),
    REWRITES = const offset_of!(VcpuPage, memory.rewrites),
    REWRITES_OFFSET = const contents::REWRITES_OFFSET,
    MEMORY_GVA = const image::MEMORY_GPA,
    PAGE_SHIFT = const PAGE_SIZE.ilog2(),
);

unsafe extern "C" {
    static loadgen_memory_begin: u8;
    static loadgen_memory_end: u8;
}

/// The machine code; its first byte is what is called.
pub(crate) fn code() -> &'static [u8] {
    let begin = &raw const loadgen_memory_begin;
    let length = (&raw const loadgen_memory_end).addr() - begin.addr();
    // SAFETY: both symbols are in the same section above, and all between them is initialised data.
    unsafe { slice::from_raw_parts(begin, length) }
}
