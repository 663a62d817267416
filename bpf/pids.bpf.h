/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What is known of processes and threads by their IDs: who runs a VM, who is a vCPU, and names. */
#ifndef __PIDS_BPF_H
#define __PIDS_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "vcpulag.h"

/*
 * Which PIDs are vCPUs' threads and VMs' processes: a byte each, asked for both sides of every
 * switch of the host, which a hash table would make twice as dear.
 */
enum pid_flags {
	PID_VCPU = 1 << 0,
	PID_VM = 1 << 1,
	PID_NAMED = 1 << 2,
};

#define PIDS_PER_ELEMENT 64

struct pid_flags_element {
	__u8 flags[PIDS_PER_ELEMENT];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* pid_max / PIDS_PER_ELEMENT, set at load */
	__type(key, __u32);
	__type(value, struct pid_flags_element);
} pids SEC(".maps");

static __always_inline __u8 *pid_flags(__u32 pid)
{
	__u32 index = pid / PIDS_PER_ELEMENT;
	struct pid_flags_element *e = bpf_map_lookup_elem(&pids, &index);

	return e ? &e->flags[pid % PIDS_PER_ELEMENT] : NULL;
}

static __always_inline bool pid_is(__u32 pid, __u8 flag)
{
	__u8 *flags = pid_flags(pid);

	return flags && *flags & flag;
}

static __always_inline void note_vm(__u32 tgid)
{
	__u8 *flags = pid_flags(tgid);

	if (flags)
		*flags |= PID_VM;
}

/*
 * What processes that have run are called. Taken once from each, as to copy 16 bytes in every
 * switch would be half of what it costs. Those named long ago may be forgotten, and are named again
 * when that is found out.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u32);
	__type(value, struct process_name);
} names SEC(".maps");

/* Not inlined: it is rare. */
static __noinline int name_process(struct task_struct *task, __u8 *flags)
{
	struct process_name name = {};
	__u32 tgid = BPF_CORE_READ(task, tgid);

	BPF_CORE_READ_STR_INTO(&name.comm, task, group_leader, comm);
	bpf_map_update_elem(&names, &tgid, &name, BPF_ANY);
	if (flags)
		*flags |= PID_NAMED;
	return 0;
}

/* Not inlined: it is rare, too. */
static __noinline int read_name(__u32 tgid, struct process_name *to)
{
	struct process_name *name = bpf_map_lookup_elem(&names, &tgid);
	__u8 *flags = pid_flags(tgid);

	if (name && to)
		*to = *name;
	else if (flags)
		*flags &= ~PID_NAMED;
	return 0;
}

#endif /* __PIDS_BPF_H */
