// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* runqlat: how long do runnable tasks wait for a CPU? */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include "compat.bpf.h"
#include "hist.bpf.h"
#include "runq.bpf.h"
#include "vcpu.bpf.h"
#include "runqlat.h"

/* Room for CPU numbers in a bit mask; NR_CPUS of x86's MAXSMP configuration. */
#define MAX_CPUS 8192

const volatile enum breakdown by = BY_NOTHING;
const volatile __s32 only_tgid = 0;
const volatile __s32 only_tid = 0;
const volatile bool only_vcpus = false;
const volatile __u64 only_cgroup_id = 0;
const volatile __u32 only_cgroup_level = 0;
const volatile bool only_some_cpus = false;
const volatile __u64 only_cpus[MAX_CPUS / 64] = {};

/* The number of the interval, advanced by user space before it reads. */
volatile __u16 epoch;
/* Waits that found no room in a map. */
__u64 lost;
/* Waits that ended but are not in the kernel's books. */
__u64 unbooked;
/* Elements created in `keyed`: user space checks that it has read as many. */
__u64 keyed_created;
/* The smallest difference seen between CLOCK_MONOTONIC and a run queue's clock; ~0 before. */
__u64 clock_offset_ns;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1); /* the number of possible CPUs, set at load */
	__type(key, __u32);
	__type(value, struct cpu_waits);
} by_cpu SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* what the host can have, set at load */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct waits_key);
	__type(value, struct keyed_waits);
} keyed SEC(".maps");

/* The namespace that @task's own PID belongs to: task_active_pid_ns() in kernel/pid.c. */
static __always_inline __u64 task_pidns_inum(struct task_struct *task)
{
	struct pid_namespace *ns = NULL;
	struct pid *pid = task->thread_pid;
	__u32 level;

	/* A thread that has been released but still has to switch away has no PID any more. */
	if (!pid)
		return 0;
	level = BPF_CORE_READ(pid, level);
	bpf_core_read(&ns, sizeof(ns), &pid->numbers[level].ns);
	return BPF_CORE_READ(ns, ns.inum);
}

static __always_inline __u64 task_id(struct task_struct *task)
{
	switch (by) {
	case BY_THREAD:
		return (__u64)task->tgid << 32 | (__u32)task->pid;
	case BY_PROCESS:
	case BY_VM:
		return (__u64)task->tgid << 32;
	case BY_PIDNS:
		return task_pidns_inum(task);
	case BY_NOTHING:
	case BY_CPU:
		break;
	}
	return 0;
}

static __always_inline void read_comm(__u8 *comm, struct task_struct *task)
{
	struct task_struct *named = by == BY_THREAD ? task : task->group_leader;

	bpf_probe_read_kernel_str(comm, TASK_COMM_LEN, &named->comm);
}

/* What never changes for a task; anything else must not keep its books from being kept. */
static __always_inline bool wanted_for_ever(struct task_struct *task)
{
	if (only_tgid && task->tgid != only_tgid)
		return false;
	return !only_tid || task->pid == only_tid;
}

static __always_inline bool wanted_now(struct task_struct *task, __u32 cpu, bool vcpu)
{
	if ((only_vcpus || by == BY_VM) && !vcpu)
		return false;
	if (only_some_cpus && !(only_cpus[(cpu & (MAX_CPUS - 1)) / 64] & 1ULL << cpu % 64))
		return false;
	return !only_cgroup_id ||
	       cgroup_ancestor_id(task->cgroups->dfl_cgrp, only_cgroup_level) == only_cgroup_id;
}

static __always_inline void count_keyed(struct task_struct *next, struct runq_wait *wait)
{
	struct waits_key key = {.id = task_id(next), .octave = hist_octave_of(wait->ns)};
	static const struct keyed_waits none;
	struct keyed_waits *k;

	k = bpf_map_lookup_elem(&keyed, &key);
	if (!k) {
		if (!bpf_map_update_elem(&keyed, &key, &none, BPF_NOEXIST))
			__sync_fetch_and_add(&keyed_created, 1);
		/* If that failed, another CPU may have been first. */
		k = bpf_map_lookup_elem(&keyed, &key);
		if (!k) {
			__sync_fetch_and_add(&lost, 1);
			return;
		}
	}
	hist_record_shared(&k->waits.hist, key.octave, wait->ns, epoch);
	if (wait->preempted)
		__sync_fetch_and_add(&k->waits.preempted, 1);
	if (wait->start_unseen)
		__sync_fetch_and_add(&k->waits.start_unseen, 1);
	k->last_ns = task_rq(next)->clock;
	read_comm(k->comm, next);
}

static __always_inline void count_on_cpu(__u32 cpu, struct runq_wait *wait)
{
	__u32 octave = hist_octave_of(wait->ns);
	struct cpu_waits *c;
	struct waits *w;

	c = bpf_map_lookup_elem(&by_cpu, &cpu);
	if (!c || octave >= HIST_OCTAVES) {
		__sync_fetch_and_add(&lost, 1);
		return;
	}
	w = &c->octaves[octave];
	hist_record(&w->hist, octave, wait->ns, epoch);
	w->preempted += !!wait->preempted;
	w->start_unseen += !!wait->start_unseen;
}

static __always_inline int switched_in(struct task_struct *next)
{
	__u32 cpu = bpf_get_smp_processor_id();
	struct runq_wait wait = {};
	bool booked;

	if (!next->pid || !wanted_for_ever(next))
		return 0;
	booked = runq_wait_ends(next, &wait);
	if (!wanted_now(next, cpu, wait.vcpu))
		return 0;
	if (!booked)
		__sync_fetch_and_add(&unbooked, 1);
	else if (by == BY_NOTHING || by == BY_CPU)
		count_on_cpu(cpu, &wait);
	else
		count_keyed(next, &wait);
	return 0;
}

/* Not inlined: as a function's argument, the type stays in the BTF that Rust's is made from. */
static __noinline void write_waiting(struct seq_file *seq, struct waiting_task *waiting)
{
	bpf_seq_write(seq, waiting, sizeof(*waiting));
}

/* Opens books for tasks that are not yet known, and writes those which wait. */
static __always_inline int visit(struct seq_file *seq, struct task_struct *task)
{
	struct waiting_task waiting = {};
	struct runq_books *b, first;
	struct rq *rq;
	__u64 offset, run_delay;
	bool vcpu;

	if (!task || !task->pid || !wanted_for_ever(task))
		return 0;
	rq = task_rq(task);
	offset = bpf_ktime_get_ns() - rq->clock;
	/* Only one reader at a time runs this: no race. */
	if (offset < clock_offset_ns)
		clock_offset_ns = offset;

	first = runq_first_books(task);
	b = bpf_task_storage_get(&books, task, &first, BPF_LOCAL_STORAGE_GET_F_CREATE);
	vcpu = first.flags & RUNQ_VCPU;
	if (b) {
		run_delay = task->sched_info.run_delay;
		if (run_delay > b->run_delay_ns)
			waiting.waited_before_ns = run_delay - b->run_delay_ns;
		vcpu |= !!(b->flags & RUNQ_VCPU);
	}
	waiting.last_queued_ns = task->sched_info.last_queued;
	waiting.cpu = rq->cpu;
	if (!waiting.last_queued_ns || !wanted_now(task, waiting.cpu, vcpu))
		return 0;
	waiting.id = task_id(task);
	read_comm(waiting.comm, task);
	write_waiting(seq, &waiting);
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	return switched_in(next);
}

SEC("iter/task")
int tasks(struct bpf_iter__task *ctx)
{
	return visit(ctx->meta->seq, ctx->task);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
