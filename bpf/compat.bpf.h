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

struct cgroup___61 {
	int level;
	struct cgroup *ancestors[];
} __attribute__((preserve_access_index));

static __always_inline u64 cgroup_ancestor_id(struct cgroup *cgrp, u32 level)
{
	struct cgroup___61 *new = (void *)cgrp;
	struct cgroup___pre_61 *old = (void *)cgrp;
	struct cgroup *ancestor = NULL;
	u64 id = 0;

	if (BPF_CORE_READ(new, level) < (int)level)
		return 0;
	if (bpf_core_field_exists(new->ancestors)) {
		bpf_core_read(&ancestor, sizeof(ancestor), &new->ancestors[level]);
		return BPF_CORE_READ(ancestor, kn, id);
	}
	bpf_core_read(&id, sizeof(id), &old->ancestor_ids[level]);
	return id;
}

#endif /* __COMPAT_BPF_H */
