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

const volatile __u32 cpus = 1;

/* Waits that found no room in a map. */
__u64 lost;
/* Waits that ended but are not in the kernel's books. */
__u64 unbooked;
/* Waits counted from the books alone, as sched_switch did not show them. */
__u64 reconstructed;
/* Elements created in `keyed`: user space checks that it has read as many. */
__u64 keyed_created;
/*
 * The smallest difference seen between CLOCK_MONOTONIC and a run queue's clock; the greatest number
 * before. Either may be ahead: only one of them is corrected by NTP.
 */
__s64 clock_offset_ns;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	/*
	 * One element per possible CPU, written in sched_switch on that CPU alone, and another one
	 * that only the iterator writes, as it may be interrupted by sched_switch. Set at load.
	 */
	__uint(max_entries, 1);
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

/*
 * PID namespaces and cgroups are asked for by some users only, and would make every start slower:
 * libbpf looks through all types of the kernel for each type of ours, a millisecond each. So there
 * are two programs of each kind, and @all is a constant: may this one read everything? A third,
 * plain one is for kernels without books (runq.bpf.h).
 */
static __always_inline __u64 task_id(struct task_struct *task, bool all)
{
	switch (by) {
	case BY_THREAD:
		return (__u64)task->tgid << 32 | (__u32)task->pid;
	case BY_PROCESS:
	case BY_VM:
		return (__u64)task->tgid << 32;
	case BY_PIDNS:
		return all ? task_pidns_inum(task) : 0;
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

/* Which threads are vCPUs' is asked only of those who want to know: it costs a pointer's read. */
static __always_inline bool wants_vcpus(void)
{
	return only_vcpus || by == BY_VM;
}

/* What does not change for a task, but for exec by a thread that does not lead its group. */
static __always_inline bool wanted_for_ever(struct task_struct *task)
{
	if (only_tgid && task->tgid != only_tgid)
		return false;
	return !only_tid || task->pid == only_tid;
}

static __always_inline bool wanted_now(struct task_struct *task, __u32 cpu, bool vcpu, bool all)
{
	if (wants_vcpus() && !vcpu)
		return false;
	if (only_some_cpus && !(only_cpus[(cpu & (MAX_CPUS - 1)) / 64] & 1ULL << cpu % 64))
		return false;
	return !all || !only_cgroup_id ||
	       cgroup_ancestor_id(task->cgroups->dfl_cgrp, only_cgroup_level) == only_cgroup_id;
}

/* Waits of one length that began alike. */
struct samples {
	__u64 ns;     /* of each */
	__u64 n;      /* how many */
	__u64 sum_ns; /* of all */
	__u32 began;
	__u32 pad;
};

static __always_inline void count_keyed(struct task_struct *task, __u64 id, struct samples *s,
					bool has_books)
{
	struct waits_key key = {.id = id, .octave = hist_octave_of(s->ns)};
	static const struct keyed_waits none;
	struct keyed_waits *k;

	k = bpf_map_lookup_elem(&keyed, &key);
	if (!k) {
		if (!bpf_map_update_elem(&keyed, &key, &none, BPF_NOEXIST))
			__sync_fetch_and_add(&keyed_created, 1);
		/* If that failed, another CPU may have been first. */
		k = bpf_map_lookup_elem(&keyed, &key);
		if (!k) {
			__sync_fetch_and_add(&lost, s->n);
			return;
		}
	}
	hist_record_shared(&k->waits.hist, key.octave, s->ns, s->n, s->sum_ns, has_books);
	if (s->began == BEGAN_BY_PREEMPTION)
		__sync_fetch_and_add(&k->waits.preempted, s->n);
	if (s->began == BEGAN_UNSEEN)
		__sync_fetch_and_add(&k->waits.start_unseen, s->n);
	k->last_ns = bpf_ktime_get_ns();
	read_comm(k->comm, task);
}

static __always_inline void count_on_cpu(__u32 element, struct samples *s)
{
	__u32 octave = hist_octave_of(s->ns);
	struct cpu_waits *c;
	struct waits *w;

	c = bpf_map_lookup_elem(&by_cpu, &element);
	if (!c || octave >= HIST_OCTAVES) {
		__sync_fetch_and_add(&lost, s->n);
		return;
	}
	w = &c->octaves[octave];
	hist_record(&w->hist, octave, s->ns, s->n, s->sum_ns);
	if (s->began == BEGAN_BY_PREEMPTION)
		w->preempted += s->n;
	if (s->began == BEGAN_UNSEEN)
		w->start_unseen += s->n;
}

/* Records waits of @task under @id or, if they have no other key, in @element of by_cpu. */
static __always_inline void count(struct task_struct *task, __u64 id, __u32 element,
				  struct samples *s, bool has_books)
{
	if (by == BY_NOTHING || by == BY_CPU)
		count_on_cpu(element, s);
	else
		count_keyed(task, id, s, has_books);
}

/*
 * Waits that the kernel has booked but sched_switch has not shown: their number and sum are exact;
 * where there are several, each is taken for their mean. Not inlined: this is not the usual path.
 */
static __noinline int count_missed(struct task_struct *task, __u64 id, __u32 element, __u64 n,
				   __u64 sum_ns)
{
	struct samples s = {.ns = sum_ns / (n ?: 1), .n = n, .sum_ns = sum_ns};

	s.began = BEGAN_UNSEEN;
	__sync_fetch_and_add(&reconstructed, n);
	count(task, id, element, &s, true);
	return 0;
}

static __always_inline int switched_in(struct task_struct *next, bool all, bool has_books)
{
	bool in_vcpu = wants_vcpus() && task_in_vcpu(next);
	__u32 cpu = bpf_get_smp_processor_id();
	struct rq *rq = task_rq(next);
	struct runq_wait wait = {};
	struct samples s = {};
	__u64 id;

	if (!next->pid || !wanted_for_ever(next))
		return 0;
	runq_wait_ends(next, rq, in_vcpu, has_books, &wait);
	if (!wanted_now(next, cpu, wait.vcpu, all))
		return 0;
	/* No memory for them, or (before 6.3) they are being looked at on this CPU. */
	if (wait.no_books && runq_books_open) {
		__sync_fetch_and_add(&lost, 1);
		return 0;
	}
	id = task_id(next, all);
	if (has_books && wait.missed)
		count_missed(next, id, cpu, wait.missed, wait.missed_ns);
	if (!wait.booked && !wait.ns) {
		__sync_fetch_and_add(&unbooked, 1);
		return 0;
	}
	s.ns = wait.ns;
	s.n = 1;
	s.sum_ns = wait.ns;
	s.began = wait.began;
	count(next, id, cpu, &s, has_books);
	return 0;
}

/* Not inlined: as a function's argument, the type stays in the BTF that Rust's is made from. */
static __noinline void write_waiting(struct seq_file *seq, struct waiting_task *waiting)
{
	bpf_seq_write(seq, waiting, sizeof(*waiting));
}

/* Opens books for tasks not known yet, catches up with missed waits, writes tasks that wait. */
static __always_inline int visit(struct seq_file *seq, struct task_struct *task, bool all,
				 bool has_books)
{
	struct waiting_task waiting = {};
	struct runq_wait wait = {};
	__s64 offset;
	bool in_vcpu;
	struct rq *rq;

	if (!task || !task->pid)
		return 0;
	rq = BPF_CORE_READ(task, se.cfs_rq, rq);
	offset = bpf_ktime_get_ns() - BPF_CORE_READ(rq, clock);
	/* User space has one reader at a time: no race. */
	if (offset < clock_offset_ns)
		clock_offset_ns = offset;
	if (!wanted_for_ever(task))
		return 0;

	in_vcpu = wants_vcpus() && task_in_vcpu(task);
	runq_look(task, in_vcpu, has_books, &wait);
	waiting.cpu = BPF_CORE_READ(rq, cpu);
	if (!wanted_now(task, waiting.cpu, wait.vcpu, all))
		return 0;
	waiting.id = task_id(task, all);
	if (has_books && wait.missed)
		count_missed(task, waiting.id, cpus + waiting.cpu, wait.missed, wait.missed_ns);
	/*
	 * Asleep but queued: delayed dequeue (Linux 6.12) leaves a sleeper on its run queue, and
	 * sched_info_enqueue() stamps it if it is moved to another.
	 */
	waiting.last_queued_ns = task->sched_info.last_queued;
	if (!waiting.last_queued_ns || task->on_cpu || !task->on_rq || !task_runnable(task))
		return 0;
	waiting.waited_before_ns = wait.ns;
	read_comm(waiting.comm, task);
	write_waiting(seq, &waiting);
	return 0;
}

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	return switched_in(next, false, true);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch_all, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	return switched_in(next, true, true);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch_plain, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	return switched_in(next, true, false);
}

SEC("tp_btf/task_newtask")
int BPF_PROG(task_newtask, struct task_struct *task, u64 clone_flags)
{
	if (wanted_for_ever(task))
		runq_open_books(task, false);
	return 0;
}

/*
 * Run by user space on each CPU, that waits in `keyed` find an element there. Since Linux 6.1 a CPU
 * has but one of this size at hand until an interrupt after its first use brings more (see
 * prefill_mem_cache() in kernel/bpf/memalloc.c), and a switch with missed waits may need two.
 */
SEC("raw_tp")
int stock_up(void *ctx)
{
	struct waits_key key = {.octave = HIST_OCTAVES};
	static const struct keyed_waits none;

	bpf_map_update_elem(&keyed, &key, &none, BPF_ANY);
	bpf_map_delete_elem(&keyed, &key);
	return 0;
}

SEC("iter/task")
int tasks(struct bpf_iter__task *ctx)
{
	return visit(ctx->meta->seq, ctx->task, false, true);
}

SEC("iter/task")
int tasks_all(struct bpf_iter__task *ctx)
{
	return visit(ctx->meta->seq, ctx->task, true, true);
}

SEC("iter/task")
int tasks_plain(struct bpf_iter__task *ctx)
{
	return visit(ctx->meta->seq, ctx->task, true, false);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
