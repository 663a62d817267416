/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How long did a task wait for a CPU? The kernel keeps books (struct sched_info, written by
 * kernel/sched/stats.h): last_queued is set when a task becomes runnable and still set when
 * sched_switch fires; run_delay is the sum of its waits, closed in sched_info_arrive() right after.
 */
#ifndef __RUNQ_BPF_H
#define __RUNQ_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "vcpu.bpf.h"

enum runq_flags {
	RUNQ_START_UNSEEN = 1 << 0, /* the wait in progress began before this task was known */
	RUNQ_VCPU = 1 << 1,	    /* this thread has been seen inside a vCPU's ioctl */
};

/* What the kernel's books said of a task when it last got a CPU. */
struct runq_books {
	__u64 run_delay_ns;
	__u64 nvcsw;
	__u32 flags;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct runq_books);
} books SEC(".maps");

/* Waits of tasks for whose books there was no memory: if split, only the last part is counted. */
__u64 unrepaired;

struct runq_wait {
	__u64 ns;
	__u32 preempted;    /* began by preemption (or a yield), not by a wake-up */
	__u32 start_unseen; /* how it began is not known */
	__u32 vcpu;	    /* the task is a vCPU's thread */
};

/*
 * The books of a task not met before. One that has never run (pcount 0) has all its run_delay in
 * the wait it is in, as fork clears sched_info.
 */
static __always_inline struct runq_books runq_first_books(struct task_struct *task)
{
	struct runq_books first = {};

	first.nvcsw = task->nvcsw;
	if (task->sched_info.pcount) {
		first.run_delay_ns = task->sched_info.run_delay;
		if (task->sched_info.last_queued)
			first.flags = RUNQ_START_UNSEEN;
	}
	/* Asleep, or never run: the next wait is no preemption, so nvcsw must look changed. */
	if (!task->on_cpu && !first.flags)
		first.nvcsw--;
	if (task_in_vcpu(task))
		first.flags |= RUNQ_VCPU;
	return first;
}

/* The rq's clock at the moment; sched_switch fires after update_rq_clock(). */
static __always_inline struct rq *task_rq(struct task_struct *task)
{
	/* Set for tasks of every class by set_task_rq(); the per-CPU symbol is not always known. */
	return task->se.cfs_rq->rq;
}

/*
 * For @next of sched_switch: fills in the wait that ends now. False if the kernel has booked none:
 * a task preempted between setting its state and schedule() is not running for
 * sched_info_depart(), which then does not set last_queued.
 *
 * When the load balancer moves a waiting task, sched_info_dequeue() adds the wait so far to
 * run_delay and a new one begins: what run_delay grew by since the task last got a CPU belongs to
 * this wait. __schedule() counts nvcsw before the tracepoint when a task gives up its CPU: if it
 * has not changed, the task was pushed off.
 */
static __always_inline bool runq_wait_ends(struct task_struct *next, struct runq_wait *wait)
{
	__u64 queued = next->sched_info.last_queued;
	__u64 run_delay = next->sched_info.run_delay;
	struct runq_books *b, first;
	__u64 last_part = 0;

	if (queued) {
		last_part = task_rq(next)->clock - queued;
		if ((__s64)last_part < 0)
			last_part = 0;
	}

	wait->ns = last_part;
	b = bpf_task_storage_get(&books, next, NULL, 0);
	if (!b) {
		first = runq_first_books(next);
		b = bpf_task_storage_get(&books, next, &first, BPF_LOCAL_STORAGE_GET_F_CREATE);
		if (!b) {
			__sync_fetch_and_add(&unrepaired, 1);
			wait->start_unseen = true;
			wait->vcpu = first.flags & RUNQ_VCPU;
			return queued;
		}
	}

	if (run_delay > b->run_delay_ns)
		wait->ns += run_delay - b->run_delay_ns;
	wait->start_unseen = b->flags & RUNQ_START_UNSEEN;
	wait->preempted = !wait->start_unseen && b->nvcsw == next->nvcsw;
	if (task_in_vcpu(next))
		b->flags |= RUNQ_VCPU;
	wait->vcpu = b->flags & RUNQ_VCPU;

	b->run_delay_ns = run_delay + last_part;
	b->nvcsw = next->nvcsw;
	b->flags &= ~RUNQ_START_UNSEEN;
	return queued || wait->ns;
}

#endif /* __RUNQ_BPF_H */
