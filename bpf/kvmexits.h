/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What kvmexits' programs and its user space exchange. */
#ifndef __KVMEXITS_H
#define __KVMEXITS_H

#include "hist.bpf.h"

#define TASK_COMM_LEN 16

/* Where a vCPU went, and whose numbers its reason is from. The first two are KVM_ISA_*. */
enum exit_kind {
	EXIT_VMX = 1,
	EXIT_SVM = 2,
	EXIT_USERSPACE = 3,
};

/*
 * What the reason does not say, in 56 bits below what they are. MMIO_WRITE is above all physical
 * addresses.
 */
enum detail {
	DETAIL_SHIFT = 56,
	DETAIL_PIO = 1,	      /* port, PIO_OUT */
	DETAIL_MMIO = 2,      /* guest-physical address, MMIO_WRITE */
	DETAIL_MSR = 3,	      /* number, MSR_WRITE */
	DETAIL_HYPERCALL = 4, /* number */
	DETAIL_HALT = 5,      /* enum halt */
	DETAIL_STACK = 6,     /* the element of the map `stacks` */
};

#define DETAIL(what, value) ((__u64)(what) << DETAIL_SHIFT | (value))

#define PIO_OUT	   (1ULL << 16)
#define MSR_WRITE  (1ULL << 32)
#define MMIO_WRITE (1ULL << 55)

enum halt {
	HALT_SLEPT = 1,
	HALT_POLLED = 2,
};

/* As long as it is not known. */
#define VCPU_ID_UNKNOWN (~0U)

/* The process that a vCPU's thread belongs to. PIDs come back, but not with the same start. */
struct vm_id {
	__u64 start_boottime_ns;
	__u32 tgid;
	__u32 vcpu_id;
};

/* Where exits of one reason and one power of two are counted. */
struct exits_key {
	struct vm_id vm; /* zeroes if nobody asks for it */
	__u64 detail;	 /* 0 likewise */
	__u32 writer;	 /* the thread or, if nobody asks for VMs, the CPU that alone writes here */
	__u32 kind;
	__u32 code;
	__s32 err; /* what KVM_RUN returns, if that is an error */
	__u32 octave;
	__u32 pad;
};

/* Where their time went; in KVM what is not in any of these. */
struct exit_parts {
	__u64 userspace_ns; /* outside KVM_RUN, on a CPU or asleep */
	__u64 asleep_ns;    /* inside, asleep */
	__u64 runqueue_ns;  /* waiting for a CPU */
};

/*
 * Read while it is written: a copy, made from the first field to the last, is of one moment if
 * `done` is `begun`.
 */
struct exits {
	__u64 done; /* how often it has been written */
	struct hist_octave hist;
	struct exit_parts parts;
	__u8 comm[TASK_COMM_LEN]; /* the process's */
	__u64 begun;		  /* the same, and once more while it is written */
};

/* A thread that runs a vCPU. */
struct vcpu_thread {
	struct vm_id vm;
	__u64 vcpu; /* its address; 0 if KVM's types are not known */
	/* The exit from guest mode in progress; exit_ns is 0 if there is none. */
	__u64 exit_ns;
	__u64 exit_detail;
	struct exit_parts parts;
	__u32 exit_kind;
	__u32 exit_code;
	/* The exit to userspace in progress; user_ns is 0 if there is none. */
	__u64 user_ns;
	__u64 user_detail;
	__u64 user_run_delay_ns;
	__u32 user_code;
	__s32 user_err;
	/* Off its CPU inside KVM_RUN since off_ns, to sleep or not. */
	__u64 off_ns;
	__u64 off_run_delay_ns;
	__u32 off_asleep;
	__u32 pad;
	__u8 comm[TASK_COMM_LEN];
};

/* An exit that took long. */
struct slow_exit {
	__u64 end_ns;
	struct vm_id vm;
	__u64 total_ns;
	struct exit_parts parts;
	__u64 detail;
	__u32 tid;
	__u32 kind;
	__u32 code;
	__s32 err;
	__u8 comm[TASK_COMM_LEN];
};

#endif /* __KVMEXITS_H */
