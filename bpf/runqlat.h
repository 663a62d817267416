/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What runqlat's program and its user space exchange. */
#ifndef __RUNQLAT_H
#define __RUNQLAT_H

#include "hist.bpf.h"

#define TASK_COMM_LEN 16

/* What one row of the output stands for. */
enum breakdown {
	BY_NOTHING,
	BY_PROCESS,
	BY_THREAD,
	BY_VM,
	BY_CPU,
	BY_PIDNS,
};

/* The waits of one power of two. */
struct waits {
	struct hist_octave hist;
	__u64 preempted;
	__u64 start_unseen;
};

/* Without a key, and by CPU: one element per CPU. */
struct cpu_waits {
	struct waits octaves[HIST_OCTAVES];
};

/* By anything else: an octave of one process, thread, VM or PID namespace. */
struct waits_key {
	__u64 id; /* tgid << 32 | tid, tgid << 32 or the namespace's inode number */
	__u32 octave;
	__u32 pad;
};

struct keyed_waits {
	struct waits waits;
	__u64 last_ns; /* when a wait was last recorded here: the latest name counts */
	__u8 comm[TASK_COMM_LEN];
};

/* A task that waits at this moment, as the iterator writes it. */
struct waiting_task {
	__u64 id;
	__u64 last_queued_ns;	/* on the rq's clock */
	__u64 waited_before_ns; /* the parts of a split wait that the kernel has closed */
	__u32 cpu;
	__u32 pad;
	__u8 comm[TASK_COMM_LEN];
};

#endif /* __RUNQLAT_H */
