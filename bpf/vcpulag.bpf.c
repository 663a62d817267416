// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * vcpulag: how late do vCPUs run, why, and who ran instead?
 *
 * Every nanosecond of a vCPU's thread is in one place: on a CPU inside KVM_RUN or outside, waiting
 * for a CPU, or asleep in HLT, in KVM or in the VMM. sched_switch and kvm_fpu, with which KVM_RUN
 * begins and ends, tell when it goes from one to the next.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include "blame.bpf.h"
#include "compat.bpf.h"
#include "hist.bpf.h"
#include "lag.bpf.h"
#include "pids.bpf.h"
#include "rq.bpf.h"
#include "slices.bpf.h"
#include "vcpu.bpf.h"
#include "vcpulag.h"

const volatile bool with_stacks = false;
/* How many are possible. */
const volatile __u32 cpus = 1;

/* Set when all programs are attached. Before, the iterator only finds out who is a VM. */
bool counting;

/* Waits that are in no histogram. */
__u64 lost_waits;
/* Long waits that found no room in the ring buffer. */
__u64 lost_slow;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* what the host's vCPUs may need, set at load */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct waits_key);
	__type(value, struct hist_octave);
} waits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* 256 KiB where long waits are wanted, set at load */
} slow SEC(".maps");

#define STACK_FRAMES 127

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 1); /* set at load where stacks are wanted */
	__uint(key_size, sizeof(__u32));
	__uint(value_size, STACK_FRAMES * sizeof(__u64));
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* likewise */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct block_key);
	__type(value, struct block);
} blocks SEC(".maps");

static __always_inline void switched_out(void *ctx, struct task_struct *prev, bool preempt)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 tid = prev->pid;
	struct lag_vcpu *v = bpf_map_lookup_elem(&vcpus, &tid);
	bool sleeps;

	if (!v)
		return;
	sleeps = !preempt && !task_runnable(prev);
	write_begin(v);
	if (v->place == LAG_RUNNING && v->seen_pcount == prev->sched_info.pcount) {
		settle(v, now);
	} else {
		by_the_books(v, prev, now, 0, sleeps);
		if (v->seen_pcount + 1 == prev->sched_info.pcount)
			blame_unseen(v, prev, 1);
	}
	v->place = sleeps ? asleep_place(v, prev) : LAG_PREEMPTED;
	/* Preempted while its guest has nothing to do, it has polled, and may go on to later. */
	if (!v->poll_until_ns &&
	    (v->place == LAG_HALTED || (!sleeps && v->inside && guest_halted(v) == 1)))
		v->poll_until_ns = now;
	if (with_stacks && v->place == LAG_BLOCKED)
		v->stack = bpf_get_stackid(ctx, &stacks, 0);
	saw_switch(v, prev, prev->sched_info.pcount, prev->sched_info.run_delay);
	v->off_cfs_rq = (__u64)prev->se.cfs_rq;
	v->off_throttled_ns = cfs_rq_throttled_ns(prev->se.cfs_rq);
	write_end(v);
}

static __always_inline void record_wait(struct lag_vcpu *v, __u32 tid, __u64 wait_ns)
{
	struct waits_key key = {.start_boottime_ns = v->vm.start_boottime_ns, .tid = tid};
	static const struct hist_octave none;
	struct hist_octave *octave;

	key.octave = hist_octave_of(wait_ns);
	octave = bpf_map_lookup_elem(&waits, &key);
	if (!octave) {
		bpf_map_update_elem(&waits, &key, &none, BPF_NOEXIST);
		octave = bpf_map_lookup_elem(&waits, &key);
		if (!octave) {
			__sync_fetch_and_add(&lost_waits, 1);
			return;
		}
	}
	hist_record(octave, key.octave, wait_ns, 1, wait_ns);
}

static __always_inline void record_block(struct lag_vcpu *v, __u32 tid, __u64 ns)
{
	struct block_key key = {.start_boottime_ns = v->vm.start_boottime_ns, .tid = tid};
	static const struct block none;
	struct block *block;

	key.stack = v->stack;
	block = bpf_map_lookup_elem(&blocks, &key);
	if (!block) {
		bpf_map_update_elem(&blocks, &key, &none, BPF_NOEXIST);
		block = bpf_map_lookup_elem(&blocks, &key);
		if (!block) {
			__sync_fetch_and_add(&lost_waits, 1);
			return;
		}
	}
	block->count++;
	block->ns += ns;
}

/* Not inlined: as a function's argument, the type stays in the BTF that Rust's is made from. */
static __noinline void fill(struct long_wait *w, struct lag_vcpu *v, struct look *look)
{
	w->vm = v->vm;
	w->end_ns = v->since_ns;
	w->tid = look->tid;
	w->cpu = look->cpu;
	w->culprit_ns = look->longest_ns;
	w->culprit_tgid = look->longest.tgid;
	w->culprit_kind = culprit_kind(look, &look->longest);
	read_name(look->longest.tgid, &w->culprit);
	__builtin_memcpy(w->comm, v->comm, sizeof(w->comm));
}

static __always_inline void switched_in(struct task_struct *next, struct rq *rq)
{
	__u64 now = bpf_ktime_get_ns(), clock = rq->clock, queued = next->sched_info.last_queued;
	__u64 off_ns, wait_ns, queued_ns, throttled_ns, from_ns;
	__u32 tid = next->pid, cpu = bpf_get_smp_processor_id();
	struct lag_vcpu *v = bpf_map_lookup_elem(&vcpus, &tid);
	struct long_wait *told;
	struct look *look;
	bool preempted, seen;

	if (!v)
		return;
	compare_clocks(cpu, now, clock, true);
	preempted = v->place == LAG_PREEMPTED;
	off_ns = now - v->since_ns;
	queued_ns = task_queued_ns(next);
	wait_ns = next->sched_info.run_delay - v->seen_run_delay_ns + queued_ns;
	/* If not, only the last wait is known as one. */
	seen = v->place != LAG_RUNNING && v->seen_pcount == next->sched_info.pcount;
	if (!seen) {
		wait_ns = queued_ns;
		preempted = false;
	}
	/* Not by books that count the sleep of a task that was moved meanwhile: see runqlat(8). */
	if (wait_ns > off_ns || preempted)
		wait_ns = off_ns;
	throttled_ns = cfs_rq_throttled_ns(next->se.cfs_rq) - v->off_throttled_ns;
	/* Each CPU counts for itself: of a wait that was moved it cannot be told. */
	if ((__s64)throttled_ns < 0 || v->off_cfs_rq != (__u64)next->se.cfs_rq)
		throttled_ns = 0;
	if (throttled_ns > wait_ns)
		throttled_ns = wait_ns;

	write_begin(v);
	if (!seen) {
		by_the_books(v, next, now, queued_ns, 0);
		v->times.wakeups++;
		goto arrived;
	}
	slept_at(v, v->place, off_ns - wait_ns);
	if (with_stacks && v->place == LAG_BLOCKED)
		record_block(v, tid, off_ns - wait_ns);
	v->times.wait_throttled_ns += throttled_ns;
	if (preempted) {
		v->times.wait_preempted_ns += wait_ns - throttled_ns;
		v->times.preemptions++;
	} else {
		v->times.wait_wakeup_ns += wait_ns - throttled_ns;
		v->times.wakeups++;
	}
arrived:
	v->place = LAG_RUNNING;
	v->since_ns = now;
	/* A wait that is not in the books yet will be, and counted. */
	saw_switch(v, next, next->sched_info.pcount + !!queued,
		   next->sched_info.run_delay + queued_ns);
	write_end(v);

	record_wait(v, tid, wait_ns);
	/* A wait for one's own quota begins with it: nobody is to blame for that part. */
	from_ns = queued + throttled_ns;
	if (from_ns < v->blamed_until_ns)
		from_ns = v->blamed_until_ns;
	v->blamed_until_ns = 0;
	if (!queued || from_ns > clock)
		from_ns = clock;
	/* Nobody is to blame, but the wait may have to be told. */
	if (from_ns == clock && !slower_ns)
		return;
	look = look_back(v, tid, cpu, from_ns, clock, cpu);
	if (!look)
		return;
	add_culprits(v, look);
	if (!slower_ns || wait_ns <= slower_ns)
		return;
	told = bpf_ringbuf_reserve(&slow, sizeof(*told), 0);
	if (!told) {
		__sync_fetch_and_add(&lost_slow, 1);
		return;
	}
	fill(told, v, look);
	told->wait_ns = wait_ns;
	told->throttled_ns = throttled_ns;
	told->preempted = preempted;
	told->pad = 0;
	bpf_ringbuf_submit(told, 0);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	struct rq *rq = task_rq(next);
	__u8 *flags;

	flags = pid_flags(prev->tgid);
	/* Who ends is named no more: its PID may be another's next. */
	if (flags && !(*flags & PID_NAMED) && !(prev->flags & PF_EXITING))
		name_process(prev, flags);
	log_slice(rq, prev, flags && *flags & PID_VM);
	if (pid_is(prev->pid, PID_VCPU))
		switched_out(ctx, prev, preempt);
	if (pid_is(next->pid, PID_VCPU))
		switched_in(next, rq);
	return 0;
}

static __always_inline void blame_moved(struct lag_vcpu *v, struct rq *rq, __u32 tid, __u64 from_ns)
{
	__u64 clock = rq->clock;
	struct look *look;

	if (from_ns < v->blamed_until_ns)
		from_ns = v->blamed_until_ns;
	if (from_ns >= clock)
		return;
	look = look_back(v, tid, BPF_CORE_READ(rq, cpu), from_ns, clock,
			 bpf_get_smp_processor_id());
	if (!look)
		return;
	blame_running(look, rq);
	add_culprits(v, look);
}

/*
 * A vCPU that waits is moved to another CPU: those who ran on this one are blamed now. It has been
 * taken off this one's queue, so that the kernel's books already have this part of the wait.
 */
SEC("tp_btf/sched_migrate_task")
int BPF_PROG(sched_migrate_task, struct task_struct *task, int dest_cpu)
{
	__u64 run_delay = task->sched_info.run_delay, waited_ns, clock;
	struct rq *rq = task_rq(task);
	struct lag_vcpu *v;
	__u32 tid = task->pid;

	if (!pid_is(tid, PID_VCPU))
		return 0;
	v = bpf_map_lookup_elem(&vcpus, &tid);
	if (!v)
		return 0;
	write_begin(v);
	waited_ns = run_delay - v->blamed_run_delay_ns;
	v->blamed_run_delay_ns = run_delay;
	clock = rq->clock;
	/* Asleep, with its dequeue delayed, it does not wait, whatever the books say. */
	if ((__s64)waited_ns > 0 && waited_ns < clock && task_runnable(task))
		blame_moved(v, rq, tid, clock - waited_ns);
	/* The next queue has another clock. */
	v->blamed_until_ns = 0;
	write_end(v);
	return 0;
}

/* SEC("tp/kvm/…"), not raw: see kvmexits.bpf.c. What they return: 0 would keep the event from perf.
 */
#define FOR_PERF_TOO 1

/* The current @task has got its CPU without sched_switch having shown it. */
static __noinline void came_unseen(struct lag_vcpu *v, struct task_struct *task)
{
	by_the_books(v, task, bpf_ktime_get_ns(), 0, 0);
	if (v->seen_pcount + 1 == current_pcount())
		blame_unseen(v, task, 0);
	v->place = LAG_RUNNING;
	v->seen_pcount = current_pcount();
	v->seen_run_delay_ns = BPF_CORE_READ(task, sched_info.run_delay);
	v->blamed_run_delay_ns = v->seen_run_delay_ns;
	v->seen_exec_ns = BPF_CORE_READ(task, se.sum_exec_runtime);
	v->seen_nvcsw = BPF_CORE_READ(task, nvcsw);
	v->on_cpu_ns = 0;
}

static __always_inline void run_begins_or_ends(__u32 begins)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u32 tid = bpf_get_current_pid_tgid();
	struct lag_vcpu *v = bpf_map_lookup_elem(&vcpus, &tid);

	if (!v) {
		if (begins)
			add_vcpu(task, LAG_RUNNING, 1);
		return;
	}
	/* User space has not yet read what there was of an earlier thread with this ID. */
	if (v->ended_ns) {
		if (!v->succeeded)
			__sync_fetch_and_add(&lost_vcpus, 1);
		v->succeeded = 1;
		return;
	}
	if (!v->known_ns)
		return;
	write_begin(v);
	if (v->place == LAG_RUNNING && v->seen_pcount == current_pcount())
		settle(v, bpf_ktime_get_ns());
	else
		came_unseen(v, task);
	v->inside = begins;
	if (begins)
		set_vcpu(v, task_vcpu(task));
	write_end(v);
}

SEC("tp/kvm/kvm_fpu")
int kvm_fpu(struct kvm_fpu_record *ctx)
{
	run_begins_or_ends(ctx->load);
	return FOR_PERF_TOO;
}

/*
 * How long a halt has lasted tells when it began; up to the first switch away from it, or to its
 * end, KVM has polled.
 */
static __always_inline void halt_ends(__u64 halted_ns)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct lag_vcpu *v = bpf_map_lookup_elem(&vcpus, &tid);
	__u64 now, begun, until;

	if (!v || !v->known_ns || v->ended_ns)
		return;
	now = bpf_ktime_get_ns();
	begun = now - halted_ns;
	/* What was before the vCPU was known is in none of its times. */
	if (begun < v->known_ns)
		begun = v->known_ns;
	until = v->poll_until_ns ?: now;
	write_begin(v);
	if (until > begun)
		v->times.poll_ns += until - begun;
	v->poll_until_ns = 0;
	write_end(v);
}

SEC("tp/kvm/kvm_vcpu_wakeup")
int kvm_vcpu_wakeup(struct kvm_vcpu_wakeup_record *ctx)
{
	halt_ends(ctx->ns);
	return FOR_PERF_TOO;
}

static __always_inline void thread_ends(void)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tid = id, tgid = id >> 32;
	struct lag_vcpu *v;
	__u8 *flags;

	flags = pid_flags(tid);
	if (!flags || !*flags)
		return;
	v = bpf_map_lookup_elem(&vcpus, &tid);
	if (v && !v->ended_ns) {
		write_begin(v);
		settle(v, bpf_ktime_get_ns());
		/* User space deletes it when it has read it. */
		v->ended_ns = v->since_ns;
		write_end(v);
	}
	*flags = tid == tgid ? 0 : *flags & ~PID_VCPU;
}

/* A process that begins to run another program has another name. */
static __always_inline void name_changes(void)
{
	__u8 *flags = pid_flags(bpf_get_current_pid_tgid() >> 32);

	if (flags)
		*flags &= ~PID_NAMED;
}

SEC("tp/sched/sched_process_exec")
int sched_process_exec(void *ctx)
{
	name_changes();
	return FOR_PERF_TOO;
}

SEC("tp/sched/sched_process_exit")
int sched_process_exit(void *ctx)
{
	thread_ends();
	return FOR_PERF_TOO;
}

/* Not inlined: as a function's argument, the type stays in the BTF that Rust's is made from. */
static __noinline void write_sample(struct seq_file *seq, struct lag_sample *sample)
{
	bpf_seq_write(seq, sample, sizeof(*sample));
}

/* The iterator's: too big for its stack. User space has one reader at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct lag_sample);
} scratch SEC(".maps");

/* How often a sample is taken again if the vCPU is written meanwhile. */
#define SAMPLE_TRIES 4

/* Only who would be forgotten soon is to be blamed now; the rest can wait for the end. */
bool settling;
/* How often the iterator has laid claim to a wait. */
__u64 claims;

/*
 * A wait that goes on is blamed up to now. If it ends meanwhile on its own CPU, that must not blame
 * the same: the claim comes first. If it has ended before the claim, its end has blamed it all.
 */
static __always_inline void claim_and_blame(struct lag_vcpu *v, struct rq *rq, __u32 tid,
					    __u64 from_ns)
{
	__u32 cpu = BPF_CORE_READ(rq, cpu), element = cpus;
	__u32 seen = *(volatile __u32 *)&v->seq;
	__u64 clock = clock_now(rq);
	struct cpu_log *log;
	struct look *look;
	__u32 i;

	log = bpf_map_lookup_elem(&cpu_logs, &cpu);
	if (from_ns < v->blamed_until_ns)
		from_ns = v->blamed_until_ns;
	if (v->place == LAG_RUNNING || seen & 1 || from_ns >= clock || !log)
		return;
	if (settling &&
	    log->slices[(log->head - LOG_SLICES / 2) & (LOG_SLICES - 1)].end_ns <= from_ns)
		return;
	*(volatile __u64 *)&v->blamed_until_ns = clock;
	/* A memory barrier. */
	__sync_fetch_and_add(&claims, 1);
	if (seen != *(volatile __u32 *)&v->seq) {
		v->blamed_until_ns = 0;
		return;
	}
	look = begin_look(v, tid, cpu, from_ns, clock, element);
	if (!look)
		return;
	look_far(element);
	/* What has come into the log meanwhile. */
	for (i = 0; i < 8 && look->head < *(volatile __u64 *)&log->head; i++)
		blame_slice(element, look->head++);
	blame_running(look, rq);
	add_culprits(v, look);
}

static __always_inline void pay_debts(struct lag_vcpu *v, __u32 tid)
{
	__u32 i, element = cpus;
	struct debt *debt;
	struct look *look;

	for (i = 0; i < DEBTS; i++) {
		if (v->debts_paid == *(volatile __u32 *)&v->debts_made)
			return;
		debt = &v->debts[v->debts_paid & (DEBTS - 1)];
		look = begin_look(v, tid, debt->cpu, debt->from_ns, debt->to_ns, element);
		if (!look)
			return;
		look_far(element);
		add_culprits(v, look);
		barrier();
		*(volatile __u32 *)&v->debts_paid += 1;
	}
}

/*
 * Since when @task has been on its run queue, if it waits. Not inlined: of what another kernel has
 * the compiler would take the addresses out of the loop, and out of the question whether it has it.
 */
static __noinline __u64 queued_since(struct task_struct *task)
{
	/* Asleep but queued is a delayed dequeue, no wait: see runqlat.bpf.c. */
	if (task->on_cpu || !task->on_rq || !task_runnable(task))
		return 0;
	return BPF_CORE_READ(task, sched_info.last_queued);
}

static __always_inline int visit(struct seq_file *seq, struct task_struct *task)
{
	__u32 tid, i, seen, first = 0;
	struct lag_sample *sample;
	struct cfs_rq *cfs_rq;
	struct lag_vcpu *v;
	__u64 clock, queued;
	struct rq *rq;
	__u8 *flags;

	if (!task || !task->pid)
		return 0;
	tid = task->pid;
	rq = BPF_CORE_READ(task, se.cfs_rq, rq);
	clock = BPF_CORE_READ(rq, clock);
	compare_clocks(BPF_CORE_READ(rq, cpu), bpf_ktime_get_ns(), clock, false);
	if (!counting) {
		if (task_in_vcpu(task))
			note_vm(task->tgid);
		return 0;
	}
	v = bpf_map_lookup_elem(&vcpus, &tid);
	if (!v && task_in_vcpu(task)) {
		v = add_vcpu(task, task->on_cpu ? LAG_RUNNING : LAG_PREEMPTED, 1);
		/* Asleep, perhaps for ever: that is no wait. */
		if (v && v->place == LAG_PREEMPTED && !task_runnable(task))
			v->place = asleep_place(v, task);
		if (v) {
			/* When it last polled was before. */
			v->poll_until_ns = v->since_ns;
			/* Nor is anybody blamed for what was before. */
			v->blamed_until_ns = clock_now(rq);
			/* It may have left KVM_RUN before it was in the map. */
			if (!task_in_vcpu(task))
				v->inside = 0;
		}
	}
	sample = bpf_map_lookup_elem(&scratch, &first);
	if (!v || !v->known_ns || v->ended_ns || !sample)
		return 0;
	/* Lost where two threads of a process changed its flags at once. */
	flags = pid_flags(tid);
	if (flags && !(*flags & PID_VCPU))
		*flags |= PID_VCPU;
	pay_debts(v, tid);
	queued = queued_since(task);
	if (queued)
		claim_and_blame(v, rq, tid, queued);
	sample->tid = tid;
	for (i = 0; i < SAMPLE_TRIES; i++) {
		seen = *(volatile __u32 *)&v->seq;
		barrier();
		sample->vcpu = *v;
		sample->now_ns = bpf_ktime_get_ns();
		cfs_rq = BPF_CORE_READ(task, se.cfs_rq);
		clock = clock_now(BPF_CORE_READ(cfs_rq, rq));
		queued = queued_since(task);
		sample->queued_for_ns = queued && clock > queued ? clock - queued : 0;
		sample->run_delay_ns = BPF_CORE_READ(task, sched_info.run_delay);
		/* Each CPU counts for itself. */
		sample->throttled_ns = v->off_throttled_ns;
		if (v->off_cfs_rq == (__u64)cfs_rq)
			sample->throttled_ns = cfs_rq_throttled_ns(cfs_rq);
		barrier();
		if (seen == *(volatile __u32 *)&v->seq && !(seen & 1))
			break;
	}
	write_sample(seq, sample);
	return 0;
}

SEC("iter/task")
int samples(struct bpf_iter__task *ctx)
{
	return visit(ctx->meta->seq, ctx->task);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
