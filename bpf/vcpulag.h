/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What vcpulag's programs and its user space exchange. */
#ifndef __VCPULAG_H
#define __VCPULAG_H

#include "hist.bpf.h"

#define TASK_COMM_LEN 16

/* As long as it is not known. */
#define VCPU_ID_UNKNOWN (~0U)

struct process_name {
	__u8 comm[TASK_COMM_LEN];
};

/* Where a vCPU's thread is. */
enum lag_place {
	LAG_RUNNING,	/* on a CPU */
	LAG_PREEMPTED,	/* off its CPU, runnable */
	LAG_HALTED,	/* asleep in HLT, or not started by its guest */
	LAG_BLOCKED,	/* asleep inside KVM_RUN otherwise */
	LAG_VMM_ASLEEP, /* asleep outside */
};

/* Who ran while a vCPU waited. */
enum culprit_kind {
	CULPRIT_VM,	 /* a thread of another VM's process */
	CULPRIT_SIBLING, /* of the same */
	CULPRIT_TASK,	 /* any other process */
	CULPRIT_KERNEL,	 /* a kernel thread */
	CULPRIT_NOBODY,	 /* the idle task: the vCPU was on its way */
	CULPRIT_INTERRUPTS,
	CULPRIT_KINDS,
};

/* The process that a vCPU's thread belongs to. PIDs come back, but not with the same start. */
struct vm_id {
	__u64 start_boottime_ns;
	__u32 tgid;
	__u32 vcpu_id;
};

/* What has been seen of a vCPU since its thread is known. All that counts only grows. */
struct lag_times {
	__u64 run_ns;	  /* on a CPU inside KVM_RUN */
	__u64 poll_ns;	  /* of it, polling in HLT */
	__u64 vmm_ns;	  /* outside KVM_RUN, on a CPU or asleep */
	__u64 vmm_cpu_ns; /* of it, on a CPU */
	__u64 halt_ns;
	__u64 blocked_ns;
	/* Waits for a CPU, by how they began, or for the vCPU's own quota. */
	__u64 wait_wakeup_ns;
	__u64 wait_preempted_ns;
	__u64 wait_throttled_ns;
	__u64 wakeups;
	__u64 preemptions;
	__u64 culprits_ns[CULPRIT_KINDS];
};

/* A part of a wait, on a run queue's clock, for which nobody has been blamed yet. */
struct debt {
	__u64 from_ns;
	__u64 to_ns;
	__u64 cpu;
};

#define DEBTS 4 /* a power of two */

/* A vCPU's thread. */
struct lag_vcpu {
	struct vm_id vm;
	struct lag_times times;
	__u64 since_ns; /* where it is since when: all before is in the times */
	__u64 ended_ns; /* when its thread ended, or 0 */
	__u64 vcpu;	/* its address; 0 if KVM's types are not known */
	/* The kernel's books as they were, or were about to be, when it was last switched in or
	 * out. */
	__u64 seen_pcount;
	__u64 seen_run_delay_ns;
	__u64 seen_exec_ns;
	__u64 seen_nvcsw;
	__u64 on_cpu_ns; /* since then, of what is in the times */
	__u64 off_throttled_ns;
	__u64 off_cfs_rq;	   /* whose */
	__u64 known_ns;		   /* since when the vCPU is */
	__u64 blamed_until_ns;	   /* on the run queue's clock: who ran before has been blamed */
	__u64 blamed_run_delay_ns; /* somebody has been blamed for so much of the books */
	struct debt debts[DEBTS];  /* a ring: number n is in n modulo DEBTS */
	__u32 debts_made;	   /* by its switches */
	__u32 debts_paid;	   /* by the iterator */
	__u64 poll_until_ns;	   /* when it first went to sleep in this HLT */
	__u32 seq;		   /* odd while it is written */
	__u32 place;		   /* enum lag_place */
	__u32 inside;		   /* KVM_RUN */
	__u32 succeeded;	   /* ended, and another thread has its ID */
	__s32 stack; /* where it is blocked, if that is asked for; an error or of `stacks` */
	__u8 comm[TASK_COMM_LEN]; /* the process's */
};

/* A vCPU as the iterator finds it at an interval's end. */
struct lag_sample {
	struct lag_vcpu vcpu;
	__u64 now_ns;
	__u64 queued_for_ns; /* on this run queue, if it waits */
	__u64 run_delay_ns;
	__u64 throttled_ns;
	__u32 tid;
	__u32 pad;
};

/* The waits of one vCPU and one power of two. */
struct waits_key {
	__u64 start_boottime_ns;
	__u32 tid;
	__u32 octave;
};

/* Who made whom wait. */
struct pair_key {
	__u32 victim_tid;
	__u32 culprit_tgid;
};

struct pair {
	__u64 ns;
	__u64 victim_start_ns; /* of its process */
	__u32 kind;	       /* enum culprit_kind */
	__u32 pad;
	struct process_name culprit;
};

/* Where in the kernel which vCPU was blocked. */
struct block_key {
	__u64 start_boottime_ns;
	__u32 tid;
	__s32 stack;
};

struct block {
	__u64 count;
	__u64 ns;
};

/* A wait that was long. */
struct long_wait {
	struct vm_id vm;
	__u64 end_ns;
	__u64 wait_ns;
	__u64 throttled_ns;
	__u64 culprit_ns;
	__u32 tid;
	__u32 cpu;
	__u32 preempted;
	__u32 culprit_tgid;
	__u32 culprit_kind;
	__u32 pad;
	struct process_name culprit;
	__u8 comm[TASK_COMM_LEN];
};

#endif /* __VCPULAG_H */
