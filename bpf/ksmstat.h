/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What ksmstat's programs and its user space exchange. */
#ifndef __KSMSTAT_H
#define __KSMSTAT_H

#include "hist.bpf.h"

#define TASK_COMM_LEN 16
/* A power of two beyond EHWPOISON, 133, with which include/uapi/asm-generic/errno.h ends. */
#define MERGE_ERRORS 256

/* What takes time. */
enum ksm_kind {
	KSM_BATCH,     /* ksmd's, from one sleep to the next */
	KSM_FULL_SCAN, /* all mergeable memory once */
	KSM_COW,       /* a write to a merged page */
	KSM_KINDS,
};

/* A process. PIDs come back, but not with the same start. */
struct ksm_process {
	__u64 start_boottime_ns;
	__u32 tgid;
	__u32 pad;
};

/* What has happened to a process's memory since this was loaded: it only grows. */
struct ksm_events {
	__u64 merged;
	__u64 merge_failed;
	__u64 zero_merged;
	__u64 cow_breaks;
	__u64 cow_ns;
	__u8 comm[TASK_COMM_LEN];
};

/* A process with mergeable memory, as the iterator finds it. */
struct ksm_sample {
	struct ksm_process process;
	__u64 mm; /* processes may share one */
	__u64 merging_pages;
	__u64 rmap_items;
	__u64 zero_pages;
	__u8 comm[TASK_COMM_LEN];
};

/* Who writes to merged pages, from where. */
struct cow_key {
	struct ksm_process process;
	__s32 user_stack; /* an error, or of `stacks` */
	__s32 kernel_stack;
};

struct cow_place {
	__u64 count;
	__u64 ns;
	__u8 comm[TASK_COMM_LEN];
};

/* A write to a merged page that is going on. */
struct cow_start {
	__u64 since_ns;
	__u64 mm;
};

#endif /* __KSMSTAT_H */
