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

/* What the kernel's books said of a task when it last got a CPU, that wait included. */
struct runq_books {
	__u64 run_delay_ns;
	__u64 pcount;
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

struct runq_wait {
	__u64 ns;
	__u32 preempted;    /* began by preemption (or a yield), not by a wake-up */
	__u32 start_unseen; /* how it began is not known */
	__u32 vcpu;	    /* the task is a vCPU's thread */
	__u32 booked;	    /* the kernel has a wait in its books */
	__u32 last_part;    /* no memory for the task's books: if split, only the last part is known */
	__u32 pad;
	/* Waits between the last one seen and this one, of which the books have number and sum. */
	__u64 missed;
	__u64 missed_ns;
};

/*
 * The books of a task not met before. One that has never run (pcount 0) has all its run_delay in
 * the wait it is in, as fork clears sched_info.
 */
static __always_inline struct runq_books runq_first_books(struct task_struct *task)
{
	struct runq_books first = {};

	first.nvcsw = task->nvcsw;
	first.pcount = task->sched_info.pcount;
	if (first.pcount) {
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
 * What the books have grown by since they were read last, but for the wait in progress.
 *
 * When the load balancer moves a waiting task, sched_info_dequeue() adds the wait so far to
 * run_delay and a new one begins: such parts belong to the wait in progress. But pcount counts the
 * times a task got a CPU. If it has grown, there were switches without sched_switch (seen on one
 * kernel: all away from CPU 1's idle task), and the growth is theirs.
 */
static __always_inline __u64 runq_growth(struct runq_books *b, __u64 pcount, __u64 run_delay,
					 struct runq_wait *wait)
{
	__u64 growth = run_delay > b->run_delay_ns ? run_delay - b->run_delay_ns : 0;

	if (pcount <= b->pcount)
		return growth;
	wait->missed = pcount - b->pcount;
	wait->missed_ns = growth;
	return 0;
}

/*
 * Fills in the wait of @next of sched_switch that ends now.
 *
 * It is not booked if the task was preempted between setting its state and schedule(): for
 * sched_info_depart() it is not running then, and last_queued is not set.
 *
 * __schedule() counts nvcsw before the tracepoint when a task gives up its CPU: if that has not
 * changed since the task last got one, it was pushed off.
 */
static __always_inline void runq_wait_ends(struct task_struct *next, struct runq_wait *wait)
{
	__u64 queued = next->sched_info.last_queued;
	__u64 pcount = next->sched_info.pcount;
	__u64 run_delay = next->sched_info.run_delay;
	struct runq_books *b, first;

	if (queued) {
		wait->ns = task_rq(next)->clock - queued;
		if ((__s64)wait->ns < 0)
			wait->ns = 0;
	}
	wait->booked = !!queued;

	b = bpf_task_storage_get(&books, next, NULL, 0);
	if (!b) {
		first = runq_first_books(next);
		b = bpf_task_storage_get(&books, next, &first, BPF_LOCAL_STORAGE_GET_F_CREATE);
		if (!b) {
			wait->last_part = true;
			wait->start_unseen = true;
			wait->vcpu = first.flags & RUNQ_VCPU;
			return;
		}
	}

	run_delay += wait->ns;
	wait->ns += runq_growth(b, pcount, run_delay - wait->ns, wait);
	wait->preempted = b->nvcsw == next->nvcsw;
	wait->start_unseen = b->flags & RUNQ_START_UNSEEN || (wait->missed && !wait->preempted);
	wait->preempted &= !wait->start_unseen;
	if (task_in_vcpu(next))
		b->flags |= RUNQ_VCPU;
	wait->vcpu = b->flags & RUNQ_VCPU;

	b->run_delay_ns = run_delay;
	/* sched_info_arrive() will count this wait unless there is none. */
	b->pcount = pcount + wait->booked;
	b->nvcsw = next->nvcsw;
	b->flags &= ~RUNQ_START_UNSEEN;
}

/*
 * The same for a task that is looked at, not switched to: only waits that were missed, and in @ns
 * the closed parts of one in progress. Another CPU may switch to the task at this moment; who
 * moves pcount on has the waits up to there.
 */
static __always_inline void runq_look(struct task_struct *task, struct runq_wait *wait)
{
	__u64 pcount = task->sched_info.pcount, before, run_delay;
	struct runq_books *b, first;

	first = runq_first_books(task);
	wait->vcpu = first.flags & RUNQ_VCPU;
	b = bpf_task_storage_get(&books, task, &first, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!b)
		return;
	wait->vcpu |= b->flags & RUNQ_VCPU;
	wait->start_unseen = true;

	/* In the order in which sched_info_arrive() writes them, reversed. */
	before = b->pcount;
	run_delay = task->sched_info.run_delay;
	wait->ns = runq_growth(b, pcount, run_delay, wait);
	if (!wait->missed)
		return;
	if (__sync_val_compare_and_swap(&b->pcount, before, pcount) == before)
		b->run_delay_ns = run_delay;
	else
		wait->missed = 0;
}

#endif /* __RUNQ_BPF_H */
