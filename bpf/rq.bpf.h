/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A task's run queue, and how long it has been there. */
#ifndef __RQ_BPF_H
#define __RQ_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

/* The rq's clock at the moment; sched_switch fires after update_rq_clock(). */
static __always_inline struct rq *task_rq(struct task_struct *task)
{
	/* Set for tasks of every class by set_task_rq(); the per-CPU symbol is not always known. */
	return task->se.cfs_rq->rq;
}

/* How long @task, about to get a CPU in sched_switch, has been on that CPU's run queue. */
static __always_inline __u64 task_queued_ns(struct task_struct *task)
{
	__u64 queued = task->sched_info.last_queued, clock = task_rq(task)->clock;

	return queued && clock > queued ? clock - queued : 0;
}

#endif /* __RQ_BPF_H */
