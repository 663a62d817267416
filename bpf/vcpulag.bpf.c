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
#include "compat.bpf.h"
#include "hist.bpf.h"
#include "rq.bpf.h"
#include "slices.bpf.h"
#include "vcpu.bpf.h"
#include "vcpulag.h"

const volatile __s32 only_tgid = 0;
const volatile __s32 only_tid = 0;
const volatile __s32 only_vcpu_id = -1;
const volatile __u64 only_cgroup_id = 0;
const volatile __u32 only_cgroup_level = 0;
const volatile __u64 slower_ns = 0;
const volatile bool with_stacks = false;

const volatile __u32 cpus = 1;

/* Set when all programs are attached. Before, the iterator only finds out who is a VM. */
bool counting;

/* vCPUs that found no room in a map, waits that are in no histogram, time with no culprit's name.
 */
__u64 lost_vcpus;
__u64 lost_waits;
__u64 lost_pairs_ns;
/* Waits that sched_switch did not show: in the times by the kernel's books, but in no histogram. */
__u64 unseen_waits;
/* Long waits that found no room in the ring buffer. */
__u64 lost_slow;
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* what the host can have, set at load */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct lag_vcpu);
} vcpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* likewise */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct waits_key);
	__type(value, struct hist_octave);
} waits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	/* All there from the start: one wait may need dozens at once, more than can be allocated.
	 */
	__uint(max_entries, 65536);
	__type(key, struct pair_key);
	__type(value, struct pair);
} pairs SEC(".maps");

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
 * switch would be half of what it costs. Those that have not run for long may be forgotten.
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

	if (name && to)
		*to = *name;
	return 0;
}

static __always_inline void set_vcpu(struct lag_vcpu *v, struct kvm_vcpu *vcpu)
{
	if (!vcpu || v->vcpu == (__u64)vcpu)
		return;
	v->vcpu = (__u64)vcpu;
	v->vm.vcpu_id = BPF_CORE_READ(vcpu, vcpu_id);
}

/* Between these two an iterator on another CPU does not take what it reads for the truth. */
static __always_inline void write_begin(struct lag_vcpu *v)
{
	*(volatile __u32 *)&v->seq += 1;
	barrier();
}

static __always_inline void write_end(struct lag_vcpu *v)
{
	barrier();
	*(volatile __u32 *)&v->seq += 1;
}

/* Not inlined: it is rare. */
static __noinline struct lag_vcpu *add_vcpu(struct task_struct *task, __u32 place, __u32 inside)
{
	__u32 tid = BPF_CORE_READ(task, pid), tgid = BPF_CORE_READ(task, tgid);
	/* Too big for the stack, it is filled where it is: begun to be written. */
	static const struct lag_vcpu none = {.vm.vcpu_id = VCPU_ID_UNKNOWN, .seq = 1};
	struct kvm_vcpu *vcpu = task_vcpu(task);
	struct lag_vcpu *v;
	__u8 *flags;

	/* Whomever we watch: another VM that makes it wait is one. */
	note_vm(tgid);
	if ((only_tgid && tgid != only_tgid) || (only_tid && tid != only_tid))
		return NULL;
	if (only_cgroup_id && task_ancestor_cgroup_id(task, only_cgroup_level) != only_cgroup_id)
		return NULL;
	if (only_vcpu_id >= 0 && (!vcpu || BPF_CORE_READ(vcpu, vcpu_id) != only_vcpu_id))
		return NULL;
	if (bpf_map_update_elem(&vcpus, &tid, &none, BPF_NOEXIST)) {
		__sync_fetch_and_add(&lost_vcpus, 1);
		return NULL;
	}
	v = bpf_map_lookup_elem(&vcpus, &tid);
	if (!v)
		return NULL;
	v->vm.tgid = tgid;
	v->vm.start_boottime_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	set_vcpu(v, vcpu);
	BPF_CORE_READ_STR_INTO(&v->comm, task, group_leader, comm);
	v->place = place;
	v->inside = inside;
	v->since_ns = bpf_ktime_get_ns();
	v->known_ns = v->since_ns;
	v->seen_pcount = BPF_CORE_READ(task, sched_info.pcount);
	v->seen_run_delay_ns = BPF_CORE_READ(task, sched_info.run_delay);
	v->blamed_run_delay_ns = v->seen_run_delay_ns;
	v->seen_exec_ns = BPF_CORE_READ(task, se.sum_exec_runtime);
	v->seen_nvcsw = BPF_CORE_READ(task, nvcsw);
	v->off_throttled_ns = cfs_rq_throttled_ns(BPF_CORE_READ(task, se.cfs_rq));
	write_end(v);
	flags = pid_flags(tid);
	if (flags)
		*flags |= PID_VCPU;
	return v;
}

/* The time on a CPU until now. */
static __always_inline void settle(struct lag_vcpu *v, __u64 now)
{
	__u64 ns = now - v->since_ns;

	if (v->inside) {
		v->times.run_ns += ns;
	} else {
		v->times.vmm_ns += ns;
		v->times.vmm_cpu_ns += ns;
	}
	v->on_cpu_ns += ns;
	v->since_ns = now;
}

/*
 * KVM_MP_STATE_HALTED, or one of those in which a vCPU waits for its guest to start it. Without
 * KVM's types: HLT sleeps interruptibly, and hardly anything else does.
 */
static __always_inline bool is_halted(struct lag_vcpu *v, struct task_struct *task)
{
	struct kvm_vcpu *vcpu = (void *)v->vcpu;
	int state;

	if (task_uninterruptible(task))
		return false;
	if (!vcpu || !bpf_core_field_exists(vcpu->arch.mp_state))
		return true;
	state = BPF_CORE_READ(vcpu, arch.mp_state);
	return state == 3 || state == 1 || state == 2 || state == 9;
}

/*
 * sched_switch has not shown all of @task's switches since the last one seen, as happens while some
 * other tool attaches to it: the kernel's books, with @queued_ns for the wait that ends now, if one
 * does, tell what there was until now. @sleeps is 1 if it goes to sleep now. Not inlined: it is
 * rare.
 */
static __noinline void by_the_books(struct lag_vcpu *v, struct task_struct *task, __u64 now,
				    __u64 queued_ns, __u64 sleeps)
{
	__u64 left_ns = now - v->since_ns;
	__u64 run_ns, wait_ns, slept;
	__u32 place = v->place;

	run_ns = BPF_CORE_READ(task, se.sum_exec_runtime) - v->seen_exec_ns;
	run_ns = run_ns > v->on_cpu_ns ? run_ns - v->on_cpu_ns : 0;
	if (run_ns > left_ns)
		run_ns = left_ns;
	left_ns -= run_ns;
	wait_ns = BPF_CORE_READ(task, sched_info.run_delay) - v->seen_run_delay_ns + queued_ns;
	if (wait_ns > left_ns)
		wait_ns = left_ns;
	left_ns -= wait_ns;
	v->times.wait_wakeup_ns += wait_ns;
	/* Counted in __schedule() before sched_switch, for who goes to sleep. */
	slept = BPF_CORE_READ(task, nvcsw) - v->seen_nvcsw - sleeps;
	if ((place == LAG_RUNNING || place == LAG_PREEMPTED) && !slept) {
		/* By so much the books' clock differs. */
		run_ns += left_ns;
		left_ns = 0;
	} else if (place == LAG_RUNNING || place == LAG_PREEMPTED)
		place = !v->inside ? LAG_VMM_ASLEEP : is_halted(v, task) ? LAG_HALTED : LAG_BLOCKED;
	if (v->inside)
		v->times.run_ns += run_ns;
	else
		v->times.vmm_cpu_ns += run_ns;
	if (place == LAG_HALTED)
		v->times.halt_ns += left_ns;
	else if (place == LAG_BLOCKED)
		v->times.blocked_ns += left_ns;
	if (!v->inside)
		v->times.vmm_ns += run_ns;
	if (place == LAG_VMM_ASLEEP)
		v->times.vmm_ns += left_ns;
	v->since_ns = now;
	__sync_fetch_and_add(&unseen_waits, 1);
}

/* A switch has been seen. @pcount and @run_delay_ns are as they will be when it is done. */
static __always_inline void saw_switch(struct lag_vcpu *v, struct task_struct *task, __u64 pcount,
				       __u64 run_delay_ns)
{
	v->seen_pcount = pcount;
	v->seen_run_delay_ns = run_delay_ns;
	v->blamed_run_delay_ns = run_delay_ns;
	v->seen_exec_ns = task->se.sum_exec_runtime;
	v->seen_nvcsw = task->nvcsw;
	v->on_cpu_ns = 0;
}

/* A look back at who ran on a CPU while a vCPU waited there. */
struct look {
	__u64 from_ns;
	__u64 to_ns;
	struct vm_id vm;
	__u32 tid;
	__u32 cpu;
	/* What it has found. */
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
	return pid_is(slice->tgid, PID_VM) ? CULPRIT_VM : CULPRIT_TASK;
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
	if (!pair) {
		none.victim_start_ns = look->vm.start_boottime_ns;
		read_name(tgid, &none.culprit);
		bpf_map_update_elem(&pairs, &key, &none, BPF_NOEXIST);
		pair = bpf_map_lookup_elem(&pairs, &key);
		if (!pair) {
			__sync_fetch_and_add(&lost_pairs_ns, ns);
			return;
		}
	}
	/* It may have become known as a VM since. */
	pair->kind = kind;
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
	return blame_part(look, slice, before->end_ns, taken_ns);
}

/*
 * Blames the time from @from_ns to @to_ns on who ran on @cpu then: on all that is in the log but
 * its oldest slice, of which it is not known when it began.
 */
static __always_inline struct look *look_back(struct lag_vcpu *v, __u32 tid, __u32 cpu,
					      __u64 from_ns, __u64 to_ns, __u32 element)
{
	struct look *look = bpf_map_lookup_elem(&looks, &element);
	struct cpu_log *log = bpf_map_lookup_elem(&cpu_logs, &cpu);
	__u64 head;
	__u32 i;

	if (!look || !log)
		return NULL;
	__builtin_memset(look, 0, sizeof(*look));
	look->from_ns = from_ns;
	look->to_ns = to_ns;
	look->vm = v->vm;
	look->tid = tid;
	look->cpu = cpu;
	head = log->head;
	for (i = 1; i < LOG_SLICES && i <= head; i++)
		if (!blame_slice(element, head - i))
			break;
	return look;
}

/* What a look has found is the vCPU's. Atomic, as the iterator does so from another CPU. */
static __always_inline void add_culprits(struct lag_vcpu *v, struct look *look)
{
	__u32 i;

	for (i = 0; i < CULPRIT_KINDS; i++)
		__sync_fetch_and_add(&v->times.culprits_ns[i], look->culprits_ns[i]);
}

/*
 * The one wait that sched_switch has not shown the end of ended when @task came to the CPU that it
 * now leaves; but who ran there last, before it, is not known either.
 */
static __noinline void blame_unseen(struct lag_vcpu *v, struct task_struct *task)
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
	/* The last slice is @task's own, and has who is not known at its beginning. */
	to_ns = log->slices[(log->head - 2) & (LOG_SLICES - 1)].end_ns;
	if (from_ns >= to_ns)
		return;
	look = look_back(v, tid, cpu, from_ns, to_ns, cpu);
	if (look)
		add_culprits(v, look);
}

static __always_inline void switched_out(void *ctx, struct task_struct *prev, bool preempt)
{
	__u64 now = bpf_ktime_get_ns();
	__u32 tid = prev->pid;
	bool sleeps;
	struct lag_vcpu *v = bpf_map_lookup_elem(&vcpus, &tid);

	if (!v)
		return;
	sleeps = !preempt && !task_runnable(prev);
	write_begin(v);
	if (v->place == LAG_RUNNING && v->seen_pcount == prev->sched_info.pcount) {
		settle(v, now);
	} else {
		by_the_books(v, prev, now, 0, sleeps);
		if (v->seen_pcount + 1 == prev->sched_info.pcount)
			blame_unseen(v, prev);
	}
	if (!sleeps)
		v->place = LAG_PREEMPTED;
	else if (!v->inside)
		v->place = LAG_VMM_ASLEEP;
	else
		v->place = is_halted(v, prev) ? LAG_HALTED : LAG_BLOCKED;
	if (v->place == LAG_HALTED && !v->poll_until_ns)
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
	switch (v->place) {
	case LAG_HALTED:
		v->times.halt_ns += off_ns - wait_ns;
		break;
	case LAG_BLOCKED:
		v->times.blocked_ns += off_ns - wait_ns;
		if (with_stacks)
			record_block(v, tid, off_ns - wait_ns);
		break;
	case LAG_VMM_ASLEEP:
		v->times.vmm_ns += off_ns - wait_ns;
		break;
	}
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
	if (!queued)
		from_ns = clock;
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
	if (flags && !(*flags & PID_NAMED))
		name_process(prev, flags);
	log_slice(rq, prev);
	if (pid_is(prev->pid, PID_VCPU))
		switched_out(ctx, prev, preempt);
	if (pid_is(next->pid, PID_VCPU))
		switched_in(next, rq);
	return 0;
}

/*
 * Blames who has run on @rq since @from_ns while @v waits there, so far as that has been logged,
 * and who runs now.
 */
static __always_inline void blame_so_far(struct lag_vcpu *v, struct rq *rq, __u32 tid,
					 __u64 from_ns, __u64 clock, __u32 element)
{
	__u32 cpu = BPF_CORE_READ(rq, cpu);
	struct slice running = {}, *before;
	struct task_struct *curr;
	struct cpu_log *log;
	struct look *look;
	__u64 taken_ns = 0;
	__u8 *flags;

	log = bpf_map_lookup_elem(&cpu_logs, &cpu);
	if (!log || from_ns >= clock)
		return;
	look = look_back(v, tid, cpu, from_ns, clock, element);
	if (!look)
		return;
	/* If there was no switch yet, it has run since before tracing began. */
	before = &log->slices[(log->head - 1) & (LOG_SLICES - 1)];
	curr = BPF_CORE_READ(rq, curr);
	running.end_ns = clock;
	running.taken_ns = BPF_CORE_READ(rq, clock) - BPF_CORE_READ(rq, clock_task);
	running.tgid = BPF_CORE_READ(curr, tgid);
	running.kthread = BPF_CORE_READ(curr, flags) & PF_KTHREAD;
	if (before->end_ns)
		taken_ns = running.taken_ns - before->taken_ns;
	flags = pid_flags(running.tgid);
	if (flags && !(*flags & PID_NAMED))
		name_process(curr, flags);
	blame_part(look, &running, before->end_ns, taken_ns);
	add_culprits(v, look);
}

/*
 * A vCPU that waits is moved to another CPU: those who ran on this one are blamed now. It has been
 * taken off this one's queue, so that the kernel's books already have this part of the wait.
 */
SEC("tp_btf/sched_migrate_task")
int BPF_PROG(sched_migrate_task, struct task_struct *task, int dest_cpu)
{
	__u64 run_delay = task->sched_info.run_delay, waited_ns, from_ns, clock;
	struct rq *rq = task_rq(task);
	struct lag_vcpu *v;
	__u32 tid = task->pid;

	if (!pid_is(tid, PID_VCPU))
		return 0;
	v = bpf_map_lookup_elem(&vcpus, &tid);
	if (!v)
		return 0;
	waited_ns = run_delay - v->blamed_run_delay_ns;
	v->blamed_run_delay_ns = run_delay;
	clock = rq->clock;
	/* Asleep, with its dequeue delayed, it does not wait, whatever the books say. */
	if ((__s64)waited_ns > 0 && waited_ns < clock && task_runnable(task)) {
		from_ns = clock - waited_ns;
		if (from_ns < v->blamed_until_ns)
			from_ns = v->blamed_until_ns;
		blame_so_far(v, rq, tid, from_ns, clock, bpf_get_smp_processor_id());
	}
	/* The next queue has another clock. */
	v->blamed_until_ns = 0;
	return 0;
}

/* SEC("tp/kvm/…"), not raw: see kvmexits.bpf.c. What they return: 0 would keep the event from perf.
 */
#define FOR_PERF_TOO 1

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
	write_begin(v);
	settle(v, bpf_ktime_get_ns());
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

	if (!v)
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
	if (v) {
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

/*
 * A wait that goes on is blamed up to now. If it ends meanwhile on its own CPU, that must not blame
 * the same: the claim comes first. If it has ended before the claim, its end has blamed it all.
 */
static __always_inline void claim_and_blame(struct lag_vcpu *v, struct rq *rq, __u32 tid,
					    __u64 from_ns)
{
	__u64 clock = clock_now(rq);
	__u32 seen = *(volatile __u32 *)&v->seq;

	if (from_ns < v->blamed_until_ns)
		from_ns = v->blamed_until_ns;
	if (v->place == LAG_RUNNING || seen & 1)
		return;
	*(volatile __u64 *)&v->blamed_until_ns = clock;
	barrier();
	if (seen == *(volatile __u32 *)&v->seq)
		blame_so_far(v, rq, tid, from_ns, clock, cpus);
	else
		v->blamed_until_ns = 0;
}

static __always_inline int visit(struct seq_file *seq, struct task_struct *task)
{
	__u32 tid, i, seen, first = 0;
	struct lag_sample *sample;
	struct lag_vcpu *v;
	struct rq *rq;
	__u64 clock, queued;

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
			v->place = is_halted(v, task) ? LAG_HALTED : LAG_BLOCKED;
		if (v) {
			/* When it last polled was before. */
			v->poll_until_ns = v->since_ns;
			/* Nor is anybody blamed for what was before. */
			v->blamed_until_ns = clock_now(rq);
		}
	}
	sample = bpf_map_lookup_elem(&scratch, &first);
	if (!v || !v->known_ns || v->ended_ns || !sample)
		return 0;
	queued = task->sched_info.last_queued;
	/* Asleep but queued is a delayed dequeue, no wait: see runqlat.bpf.c. */
	if (task->on_cpu || !task->on_rq || !task_runnable(task))
		queued = 0;
	if (queued)
		claim_and_blame(v, rq, tid, queued);
	clock = clock_now(rq);
	sample->queued_for_ns = queued && clock > queued ? clock - queued : 0;
	sample->throttled_ns = cfs_rq_throttled_ns(BPF_CORE_READ(task, se.cfs_rq));
	sample->run_delay_ns = task->sched_info.run_delay;
	sample->tid = tid;
	for (i = 0; i < SAMPLE_TRIES; i++) {
		seen = *(volatile __u32 *)&v->seq;
		barrier();
		sample->vcpu = *v;
		sample->now_ns = bpf_ktime_get_ns();
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
