/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Who is to blame for a vCPU's wait: those that ran on its CPU meanwhile, by the log of slices. */
#ifndef __BLAME_BPF_H
#define __BLAME_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "pids.bpf.h"
#include "slices.bpf.h"
#include "vcpulag.h"

/* Waits that take longer are told as they end; 0 if none are. */
const volatile __u64 slower_ns = 0;

/* Time with no culprit's name, for want of room. */
__u64 lost_pairs_ns;
/*
 * Set when there is no room for pairs, cleared by user space when it has made some: to try again
 * for each slice would cost more than all the rest, as all CPUs' free lists are searched.
 */
bool pairs_full;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	/* All there from the start: one wait may need dozens at once, more than can be allocated.
	 */
	__uint(max_entries, 65536);
	__type(key, struct pair_key);
	__type(value, struct pair);
} pairs SEC(".maps");

/* A look back at who ran on a CPU while a vCPU waited there. */
struct look {
	__u64 from_ns;
	__u64 to_ns;
	struct vm_id vm;
	__u32 tid;
	__u32 cpu;
	/* What it has found. */
	__u64 begun_ns; /* how far it went back */
	__u64 head;	/* of the log when it began */
	__u64 unnamed_ns;
	__u64 culprits_ns[CULPRIT_KINDS];
	__u64 longest_ns;
	struct slice longest;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	/*
	 * One element per possible CPU, used in sched_switch on that CPU alone, and another for the
	 * iterator, which may be interrupted. Set at load.
	 */
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct look);
} looks SEC(".maps");

static __always_inline __u32 culprit_kind(struct look *look, struct slice *slice)
{
	if (!slice->tgid)
		return CULPRIT_NOBODY;
	if (slice->kthread)
		return CULPRIT_KERNEL;
	if (slice->tgid == look->vm.tgid)
		return CULPRIT_SIBLING;
	return slice->vm ? CULPRIT_VM : CULPRIT_TASK;
}

/* Interrupts are a pair with process 0. */
static __always_inline void blame(struct look *look, __u32 kind, __u32 tgid, __u64 ns)
{
	struct pair_key key = {.victim_tid = look->tid, .culprit_tgid = tgid};
	struct pair *pair, none = {};

	if (kind < CULPRIT_KINDS)
		look->culprits_ns[kind] += ns;
	if (kind == CULPRIT_NOBODY)
		return;
	pair = bpf_map_lookup_elem(&pairs, &key);
	if (!pair && !pairs_full) {
		none.victim_start_ns = look->vm.start_boottime_ns;
		read_name(tgid, &none.culprit);
		if (bpf_map_update_elem(&pairs, &key, &none, BPF_NOEXIST) == -E2BIG)
			pairs_full = true;
		pair = bpf_map_lookup_elem(&pairs, &key);
	}
	if (!pair) {
		look->unnamed_ns += ns;
		return;
	}
	/* It may have become known as a VM since, or been named. */
	pair->kind = kind;
	if (!pair->culprit.comm[0] && tgid)
		read_name(tgid, &pair->culprit);
	__sync_fetch_and_add(&pair->ns, ns);
}

/*
 * Blames @slice, which began at @begin_ns, for so much of it as is within the look. Of what was
 * taken from it, it is not known when: it is taken from that part. Returns 1 if the slice before
 * may be within the look, too.
 */
static __always_inline int blame_part(struct look *look, struct slice *slice, __u64 begin_ns,
				      __u64 taken_ns)
{
	__u64 end_ns = slice->end_ns < look->to_ns ? slice->end_ns : look->to_ns, ns;
	bool more = begin_ns > look->from_ns;

	if (!more)
		begin_ns = look->from_ns;
	if (end_ns <= begin_ns)
		return more;
	ns = end_ns - begin_ns;
	/* rq->clock_task may be behind by a bit: update_rq_clock_task() takes away no more than
	 * the clock has advanced, and the rest the next time. */
	if ((__s64)taken_ns < 0)
		taken_ns = 0;
	if (taken_ns > ns)
		taken_ns = ns;
	if (taken_ns)
		blame(look, CULPRIT_INTERRUPTS, 0, taken_ns);
	ns -= taken_ns;
	if (!ns)
		return more;
	if (ns > look->longest_ns && slice->tgid) {
		look->longest_ns = ns;
		look->longest = *slice;
	}
	blame(look, culprit_kind(look, slice), slice->tgid, ns);
	return more;
}

/*
 * The same for slice @number of the log. A global function of numbers: the verifier goes through it
 * once, not once for each turn of the loop that calls it.
 */
__noinline int blame_slice(__u32 element, __u64 number)
{
	struct look *look = bpf_map_lookup_elem(&looks, &element);
	struct slice *slice, *before;
	struct cpu_log *log;
	__u64 taken_ns = 0;
	__u32 cpu;

	if (!look)
		return 0;
	cpu = look->cpu;
	log = bpf_map_lookup_elem(&cpu_logs, &cpu);
	if (!log)
		return 0;
	slice = &log->slices[number & (LOG_SLICES - 1)];
	before = &log->slices[(number - 1) & (LOG_SLICES - 1)];
	/* The CPU may go on meanwhile, if it is another. */
	if (*(volatile __u64 *)&log->head - number >= LOG_SLICES)
		return 0;
	if (before->end_ns)
		taken_ns = slice->taken_ns - before->taken_ns;
	look->begun_ns = before->end_ns;
	return blame_part(look, slice, before->end_ns, taken_ns);
}

static __always_inline struct look *begin_look(struct lag_vcpu *v, __u32 tid, __u32 cpu,
					       __u64 from_ns, __u64 to_ns, __u32 element)
{
	struct look *look = bpf_map_lookup_elem(&looks, &element);

	if (!look)
		return NULL;
	__builtin_memset(look, 0, sizeof(*look));
	look->from_ns = from_ns;
	look->to_ns = to_ns;
	look->vm = v->vm;
	look->tid = tid;
	look->cpu = cpu;
	return look;
}

/*
 * Goes through the whole log but its oldest slice, of which it is not known when it began. A global
 * function, as blame_slice().
 */
__noinline int look_far(__u32 element)
{
	struct look *look = bpf_map_lookup_elem(&looks, &element);
	struct cpu_log *log;
	__u32 cpu, i;
	__u64 head;

	if (!look)
		return 0;
	cpu = look->cpu;
	log = bpf_map_lookup_elem(&cpu_logs, &cpu);
	if (!log)
		return 0;
	head = log->head;
	look->head = head;
	for (i = 1; i < LOG_SLICES && i <= head; i++)
		if (!blame_slice(element, head - i))
			break;
	return 0;
}

/*
 * How far back it is looked where a run queue is locked, and interrupts are off: a slice takes
 * 0.1 us, and over 1 us where none of what it needs is in the caches. What is before is a debt,
 * which the iterator pays. Where that comes too seldom for so many waits, it is looked further
 * back, and the rest is not known.
 */
#define NEAR_SLICES    32
#define FARTHER_SLICES 256

/* Blames the time from @from_ns to @to_ns on who ran on @cpu then, under its run queue's lock. */
static __always_inline struct look *look_back(struct lag_vcpu *v, __u32 tid, __u32 cpu,
					      __u64 from_ns, __u64 to_ns, __u32 element)
{
	struct look *look = begin_look(v, tid, cpu, from_ns, to_ns, element);
	struct cpu_log *log = bpf_map_lookup_elem(&cpu_logs, &cpu);
	/* What is told at once cannot wait. */
	bool room = !slower_ns && v->debts_made - v->debts_paid < DEBTS;
	__u32 most = room ? NEAR_SLICES : FARTHER_SLICES, i;
	struct debt *debt;
	__u64 head;

	if (!look || !log)
		return NULL;
	head = log->head;
	for (i = 1; i <= FARTHER_SLICES && i <= most && i <= head; i++)
		if (!blame_slice(element, head - i))
			break;
	if (room && look->begun_ns > from_ns) {
		debt = &v->debts[v->debts_made & (DEBTS - 1)];
		debt->from_ns = from_ns;
		debt->to_ns = look->begun_ns;
		debt->cpu = cpu;
		barrier();
		*(volatile __u32 *)&v->debts_made += 1;
	}
	return look;
}

/* What a look has found is the vCPU's. Atomic, as the iterator does so from another CPU. */
static __always_inline void add_culprits(struct lag_vcpu *v, struct look *look)
{
	__u32 i;

	for (i = 0; i < CULPRIT_KINDS; i++)
		__sync_fetch_and_add(&v->times.culprits_ns[i], look->culprits_ns[i]);
	if (look->unnamed_ns)
		__sync_fetch_and_add(&lost_pairs_ns, look->unnamed_ns);
}

/*
 * The one wait that sched_switch has not shown the end of ended when @task came to its CPU; but who
 * ran there last, before it, is not known either. @own is 1 if the last slice is @task's own, as it
 * leaves: that has who is not known at its beginning.
 */
static __noinline void blame_unseen(struct lag_vcpu *v, struct task_struct *task, __u64 own)
{
	__u64 arrived_ns = BPF_CORE_READ(task, sched_info.last_arrival), from_ns, to_ns;
	__u32 tid = BPF_CORE_READ(task, pid), cpu = bpf_get_smp_processor_id();
	struct cpu_log *log = bpf_map_lookup_elem(&cpu_logs, &cpu);
	struct look *look;

	if (!log)
		return;
	from_ns = arrived_ns - (BPF_CORE_READ(task, sched_info.run_delay) - v->blamed_run_delay_ns);
	if (from_ns < v->blamed_until_ns)
		from_ns = v->blamed_until_ns;
	v->blamed_until_ns = 0;
	to_ns = log->slices[(log->head - 1 - own) & (LOG_SLICES - 1)].end_ns;
	if (from_ns >= to_ns)
		return;
	look = look_back(v, tid, cpu, from_ns, to_ns, cpu);
	if (look)
		add_culprits(v, look);
}

/* Blames who runs on @rq now for the rest of the look. */
static __always_inline void blame_running(struct look *look, struct rq *rq)
{
	struct slice running = {}, *before;
	struct task_struct *curr;
	struct cpu_log *log;
	__u64 taken_ns = 0;
	__u32 cpu = look->cpu;
	__u8 *flags;

	log = bpf_map_lookup_elem(&cpu_logs, &cpu);
	if (!log)
		return;
	/* If there was no switch yet, it has run since before tracing began. */
	before = &log->slices[(log->head - 1) & (LOG_SLICES - 1)];
	curr = BPF_CORE_READ(rq, curr);
	running.end_ns = look->to_ns;
	running.taken_ns = BPF_CORE_READ(rq, clock) - BPF_CORE_READ(rq, clock_task);
	running.tgid = BPF_CORE_READ(curr, tgid);
	running.kthread = !!(BPF_CORE_READ(curr, flags) & PF_KTHREAD);
	if (before->end_ns)
		taken_ns = running.taken_ns - before->taken_ns;
	flags = pid_flags(running.tgid);
	running.vm = flags && *flags & PID_VM;
	if (flags && !(*flags & PID_NAMED))
		name_process(curr, flags);
	blame_part(look, &running, before->end_ns, taken_ns);
}

#endif /* __BLAME_BPF_H */
