/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * How long did a task wait for a CPU? The kernel keeps books (struct sched_info, written by
 * kernel/sched/stats.h): last_queued is set when a task becomes runnable and still set when
 * sched_switch fires; run_delay is the sum of its waits, closed in sched_info_arrive() right after.
 *
 * Linux before 5.13 has no task storage for tracing programs (a10787e6d58c, "bpf: Enable task local
 * storage for tracing programs"), and refuses programs that so much as contain what keeping books
 * takes. So whether one @has_books is a constant for each program; without them a wait is its last
 * part, how it began is not known, and a vCPU's thread is known only inside its ioctl.
 */
#ifndef __RUNQ_BPF_H
#define __RUNQ_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include "rq.bpf.h"
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

enum runq_began {
	BEGAN_BY_WAKEUP,
	BEGAN_BY_PREEMPTION, /* or by a yield */
	BEGAN_UNSEEN,
};

struct runq_wait {
	__u64 ns;
	enum runq_began began;
	__u32 vcpu;	/* the task is a vCPU's thread */
	__u32 booked;	/* the kernel has a wait in its books */
	__u32 no_books; /* the task's books are not to be had: only @ns is known, its last part */
	/* Waits between the last one seen and this one, of which the books have number and sum. */
	__u64 missed;
	__u64 missed_ns;
};

/*
 * The books of a task not met before. One that has never run (pcount 0) has all its run_delay in
 * the wait it is in, as fork clears sched_info.
 */
static __always_inline struct runq_books runq_first_books(struct task_struct *task, bool in_vcpu)
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
	if (in_vcpu)
		first.flags |= RUNQ_VCPU;
	return first;
}

/*
 * What the books have grown by since they were read last, but for the wait in progress.
 *
 * When the load balancer moves a waiting task, sched_info_dequeue() adds the wait so far to
 * run_delay and a new one begins: such parts belong to the wait in progress. But pcount counts the
 * times a task got a CPU. If it has grown, there were switches without sched_switch (on one kernel
 * all those away from some tasks), and the growth is theirs.
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
 * Opens the books of a task: of those that exist when tracing begins by an iterator, of new ones in
 * task_newtask. In sched_switch memory is allocated under the run queue's lock: before Linux 6.4
 * (08a7ce384e33, "bpf: Use bpf_mem_cache_alloc/free in bpf_local_storage_elem") that could wake
 * kswapd, which takes that lock. So there it is only for tasks that neither of the two was shown.
 */
static __always_inline struct runq_books *runq_open_books(struct task_struct *task, bool in_vcpu)
{
	struct runq_books first = runq_first_books(task, in_vcpu);

	return bpf_task_storage_get(&books, task, &first, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

/* Set when the books of all tasks that the iterator shows are open. */
volatile bool runq_books_open;

/*
 * Fills in the wait of @next of sched_switch that ends now on @rq. Who wants to know which threads
 * are vCPUs' says when one is @in_vcpu; it is remembered for when the thread is in its VMM.
 *
 * Pointers are read by the caller, once and before any branch: for each read on each path the
 * verifier looks through all types of the kernel, about a millisecond (btf_find_by_name_kind()).
 *
 * It is not booked if the task was preempted between setting its state and schedule(): for
 * sched_info_depart() it is not running then, and last_queued is not set.
 *
 * __schedule() counts nvcsw before the tracepoint when a task gives up its CPU: if that has not
 * changed since the task last got one, it was pushed off.
 */
static __always_inline void runq_wait_ends(struct task_struct *next, struct rq *rq, bool in_vcpu,
					   bool has_books, struct runq_wait *wait)
{
	__u64 queued = next->sched_info.last_queued;
	__u64 pcount = next->sched_info.pcount;
	__u64 run_delay = next->sched_info.run_delay;
	struct runq_books *b;
	__u64 last_part;

	if (queued) {
		wait->ns = rq->clock - queued;
		if ((__s64)wait->ns < 0)
			wait->ns = 0;
	}
	wait->booked = !!queued;
	wait->began = BEGAN_UNSEEN;
	wait->vcpu = in_vcpu;
	if (!has_books)
		return;

	b = bpf_task_storage_get(&books, next, NULL, 0);
	if (!b && runq_books_open)
		b = runq_open_books(next, in_vcpu);
	if (!b) {
		wait->no_books = true;
		return;
	}

	last_part = wait->ns;
	wait->ns += runq_growth(b, pcount, run_delay, wait);
	if (!(b->flags & RUNQ_START_UNSEEN)) {
		if (b->nvcsw == next->nvcsw)
			wait->began = BEGAN_BY_PREEMPTION;
		else if (!wait->missed)
			wait->began = BEGAN_BY_WAKEUP;
	}
	if (in_vcpu)
		b->flags |= RUNQ_VCPU;
	wait->vcpu = b->flags & RUNQ_VCPU;

	b->run_delay_ns = run_delay + last_part;
	/* sched_info_arrive() will count this wait unless there is none. */
	b->pcount = pcount + wait->booked;
	b->nvcsw = next->nvcsw;
	b->flags &= ~RUNQ_START_UNSEEN;
}

/*
 * The same as runq_wait_ends() for a task that is looked at, not switched to: only waits that were
 * missed, and in @ns the closed parts of one in progress.
 *
 * Missed waits are caught up with while the task sleeps. If it gets a CPU at this very moment, both
 * sides may count them: the exchange keeps that to the time between two instructions.
 */
static __always_inline void runq_look(struct task_struct *task, bool in_vcpu, bool has_books,
				      struct runq_wait *wait)
{
	__u64 pcount = task->sched_info.pcount, before, run_delay;
	struct runq_books *b;

	wait->vcpu = in_vcpu;
	if (!has_books)
		return;
	b = runq_open_books(task, in_vcpu);
	if (!b)
		return;
	wait->vcpu |= !!(b->flags & RUNQ_VCPU);

	/* In the order in which sched_info_arrive() writes them, reversed. */
	before = b->pcount;
	run_delay = task->sched_info.run_delay;
	wait->ns = runq_growth(b, pcount, run_delay, wait);
	if (!wait->missed)
		return;
	if (!task->on_rq && __sync_val_compare_and_swap(&b->pcount, before, pcount) == before)
		b->run_delay_ns = run_delay;
	else
		wait->missed = 0;
}

#endif /* __RUNQ_BPF_H */
