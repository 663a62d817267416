/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every difference between kernels: one helper each, naming the change that made it necessary. */
#ifndef __COMPAT_BPF_H
#define __COMPAT_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>

/*
 * The ID of the ancestor of @cgrp at @level (the root has level 0), 0 if @cgrp is higher up itself.
 * Linux 6.1 (7f203bc89eb6, "cgroup: Replace cgroup->ancestor_ids[] with ->ancestors[]") keeps
 * pointers where there were IDs.
 */
struct cgroup___pre_61 {
	int level;
	u64 ancestor_ids[];
} __attribute__((preserve_access_index));

static __always_inline u64 cgroup_ancestor_id(struct cgroup *cgrp, u32 level)
{
	struct cgroup___pre_61 *old = (void *)cgrp;
	struct cgroup *ancestor = NULL;
	u64 id = 0;

	if (cgrp->level < (int)level)
		return 0;
	if (cgrp->level == (int)level)
		return cgrp->kn->id;
	if (bpf_core_field_exists(cgrp->ancestors)) {
		bpf_core_read(&ancestor, sizeof(ancestor), &cgrp->ancestors[level]);
		return BPF_CORE_READ(ancestor, kn, id);
	}
	bpf_core_read(&id, sizeof(id), &old->ancestor_ids[level]);
	return id;
}

/*
 * TASK_RUNNING is 0. Linux 5.14 (2f064a59a11f, "sched: Change task_struct::state") renamed the
 * field and made it an int.
 */
struct task_struct___pre_514 {
	long state;
} __attribute__((preserve_access_index));

static __always_inline bool task_runnable(struct task_struct *task)
{
	struct task_struct___pre_514 *old = (void *)task;

	if (bpf_core_field_exists(task->__state))
		return !task->__state;
	return !BPF_CORE_READ(old, state);
}

#endif /* __COMPAT_BPF_H */
