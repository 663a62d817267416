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

/* A power of two; who ran before these is not known. */
#define LOG_SLICES 2048

/* include/linux/sched.h */
#define PF_EXITING 0x00000004
#define PF_KTHREAD 0x00200000

struct slice {
	__u64 end_ns;
	/* What interrupts, and the hypervisor below if there is one, have taken from this CPU until
	 * then: rq_clock() - rq_clock_task(), see update_rq_clock_task() in kernel/sched/core.c. */
	__u64 taken_ns;
	__u32 tgid; /* 0 is the idle task */
	__u8 kthread;
	__u8 vm; /* was known to run one then */
};

struct cpu_log {
	__u64 head; /* the number of slices there have been */
	/*
	 * CLOCK_MONOTONIC less the run queue's clock, or 0 if nobody has compared them yet. Each
	 * CPU has its own: where the hardware's clocks are not stable they differ by milliseconds.
	 */
	__s64 offset_ns;
	struct slice slices[LOG_SLICES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the number of possible CPUs, set at load */
	__type(key, __u32);
	__type(value, struct cpu_log);
} cpu_logs SEC(".maps");

/* In sched_switch: @prev has run until now. */
static __always_inline void log_slice(struct rq *rq, struct task_struct *prev, bool vm)
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
	slice->kthread = !!(prev->flags & PF_KTHREAD);
	slice->vm = vm;
	log->head++;
}

/* What @rq's clock would be if it were updated now; it stands still for up to a tick. */
static __always_inline __u64 clock_now(struct rq *rq)
{
	__u32 cpu = BPF_CORE_READ(rq, cpu);
	struct cpu_log *log = bpf_map_lookup_elem(&cpu_logs, &cpu);
	__u64 clock = BPF_CORE_READ(rq, clock), now;

	if (!log || !log->offset_ns)
		return clock;
	now = bpf_ktime_get_ns() - log->offset_ns;
	return now > clock ? now : clock;
}

/* @cpu's run queue had @clock_ns, at @now_ns if it has just been updated (@exact), or more. */
static __always_inline void compare_clocks(__u32 cpu, __u64 now_ns, __u64 clock_ns, bool exact)
{
	struct cpu_log *log = bpf_map_lookup_elem(&cpu_logs, &cpu);
	__s64 offset_ns = now_ns - clock_ns;

	if (log && (exact || !log->offset_ns || offset_ns < log->offset_ns))
		log->offset_ns = offset_ns;
}

#endif /* __SLICES_BPF_H */
