/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Who ran on each CPU, and until when: a log of the latest slices of time between two switches, on
 * the run queue's clock, so that it can be told afterwards whom a task has waited for.
 */
#ifndef __SLICES_BPF_H
#define __SLICES_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* A power of two; a wait that has seen more is not blamed on the earlier ones. */
#define LOG_SLICES 512

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

struct slice {
	__u64 end_ns;
	/* What interrupts, and the hypervisor below if there is one, have taken from this CPU until
	 * then: rq_clock() - rq_clock_task(), see update_rq_clock_task() in kernel/sched/core.c. */
	__u64 taken_ns;
	__u32 tgid; /* 0 is the idle task */
	__u32 kthread;
};

struct cpu_log {
	__u64 head; /* the number of slices there have been */
	struct slice slices[LOG_SLICES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the number of possible CPUs, set at load */
	__type(key, __u32);
	__type(value, struct cpu_log);
} cpu_logs SEC(".maps");

/* In sched_switch: @prev has run until now. */
static __always_inline void log_slice(struct rq *rq, struct task_struct *prev)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct cpu_log *log = bpf_map_lookup_elem(&cpu_logs, &cpu);
	struct slice *slice;

	if (!log)
		return;
	slice = &log->slices[log->head & (LOG_SLICES - 1)];
	slice->end_ns = rq->clock;
	slice->taken_ns = rq->clock - rq->clock_task;
	slice->tgid = prev->tgid;
	slice->kthread = prev->flags & PF_KTHREAD;
	log->head++;
}

#endif /* __SLICES_BPF_H */
