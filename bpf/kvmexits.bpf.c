// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * kvmexits: why do guests leave guest mode, and where does the time go?
 *
 * An exit lasts from kvm_exit to kvm_entry; within it, the VMM has the vCPU from kvm_userspace_exit
 * to kvm_fpu, with which KVM_RUN begins (kvm_arch_vcpu_ioctl_run() in arch/x86/kvm/x86.c).
 * sched_switch tells when the thread was off its CPU in between.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>
#include "compat.bpf.h"
#include "hist.bpf.h"
#include "rq.bpf.h"
#include "vcpu.bpf.h"
#include "kvmexits.h"

/* Reasons that are treated apart: arch/x86/include/uapi/asm/{vmx,svm}.h, include/uapi/linux/kvm.h.
 */
#define VMX_EXIT_HLT		12
#define VMX_EXIT_IO_INSTRUCTION 30
#define SVM_EXIT_HLT		0x78
#define SVM_EXIT_IDLE_HLT	0xa6
#define SVM_VMGEXIT_AP_HLT_LOOP 0x80000004
#define SVM_EXIT_IOIO		0x7b
#define KVM_EXIT_IO		2
#define KVM_EXIT_HYPERCALL	3
#define KVM_EXIT_HLT		5
#define KVM_EXIT_MMIO		6
#define KVM_EXIT_X86_RDMSR	29
#define KVM_EXIT_X86_WRMSR	30
#define KVM_EXIT_AP_RESET_HOLD	32

const volatile __s32 only_tgid = 0;
const volatile __s32 only_tid = 0;
const volatile __s32 only_vcpu_id = -1;
const volatile __u64 only_cgroup_id = 0;
const volatile __u32 only_cgroup_level = 0;
const volatile bool by_thread = false;
const volatile bool with_detail = false;
const volatile bool with_stacks = false;
const volatile __u64 slower_ns = 0;

/* Exits that found no room in a map. */
__u64 lost;
/* Exits whose end was not seen. */
__u64 unended;
/* Slow exits that found no room in the ring buffer. */
__u64 lost_slow;
/* Elements created in `exits`: user space checks that it has read as many. */
__u64 exits_created;
/* The last output is due: all programs end at once, though they are detached one by one. */
bool over;
/* Does kvm_exit fire while vCPUs run? */
bool exits_seen;
bool runs_seen;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* what the host can have, set at load */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct vcpu_thread);
} threads SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* likewise */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct exits_key);
	__type(value, struct exits);
} exits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096); /* 256 KiB where slow exits are wanted, set at load */
} slow SEC(".maps");

#define STACK_FRAMES 127

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 1); /* set at load where stacks are wanted */
	__uint(key_size, sizeof(__u32));
	__uint(value_size, STACK_FRAMES * sizeof(__u64));
} stacks SEC(".maps");

static __noinline struct vcpu_thread *add_thread(__u32 tid, __u32 tgid)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct vcpu_thread added = {};

	if (only_cgroup_id && task_ancestor_cgroup_id(task, only_cgroup_level) != only_cgroup_id)
		return NULL;
	added.vm.tgid = tgid;
	added.vm.start_boottime_ns = BPF_CORE_READ(task, group_leader, start_boottime);
	added.vm.vcpu_id = VCPU_ID_UNKNOWN;
	BPF_CORE_READ_STR_INTO(&added.comm, task, group_leader, comm);
	if (bpf_map_update_elem(&threads, &tid, &added, BPF_NOEXIST)) {
		__sync_fetch_and_add(&lost, 1);
		return NULL;
	}
	return bpf_map_lookup_elem(&threads, &tid);
}

/* The current thread, if it is wanted. */
static __always_inline struct vcpu_thread *this_thread(void)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u32 tid = id, tgid = id >> 32;
	struct vcpu_thread *t;

	if (over || (only_tgid && tgid != only_tgid) || (only_tid && tid != only_tid))
		return NULL;
	t = bpf_map_lookup_elem(&threads, &tid);
	return t ?: add_thread(tid, tgid);
}

static __always_inline void set_vcpu(struct vcpu_thread *t, struct kvm_vcpu *vcpu)
{
	if (t->vcpu == (__u64)vcpu)
		return;
	t->vcpu = (__u64)vcpu;
	t->vm.vcpu_id = BPF_CORE_READ(vcpu, vcpu_id);
}

/* Where kvm_exit does not fire, the vCPU is not known before KVM_RUN begins. */
static __always_inline bool may_be_wanted(struct vcpu_thread *t)
{
	return t->vm.vcpu_id == VCPU_ID_UNKNOWN || only_vcpu_id < 0 ||
	       t->vm.vcpu_id == (__u32)only_vcpu_id;
}

static __always_inline bool wanted(struct vcpu_thread *t)
{
	return only_vcpu_id < 0 || t->vm.vcpu_id == (__u32)only_vcpu_id;
}

/* An exit that has ended. */
struct ended {
	struct exit_parts parts;
	__u64 total_ns;
	__u64 detail;
	__u32 kind;
	__u32 code;
	__s32 err;
	__u32 pad;
};

static __always_inline struct exits *find_exits(struct vcpu_thread *t, struct exits_key *key)
{
	static const struct exits none;
	struct exits *e = bpf_map_lookup_elem(&exits, key);

	if (e)
		return e;
	if (!bpf_map_update_elem(&exits, key, &none, BPF_NOEXIST))
		__sync_fetch_and_add(&exits_created, 1);
	e = bpf_map_lookup_elem(&exits, key);
	if (e)
		__builtin_memcpy(e->comm, t->comm, sizeof(e->comm));
	return e;
}

/* A halted vCPU has nothing to do: how long is nobody's fault. As Reason::is_halt() has it. */
static __always_inline bool is_halt(__u32 kind, __u32 code)
{
	switch (kind) {
	case EXIT_VMX:
		return (__u16)code == VMX_EXIT_HLT;
	case EXIT_SVM:
		return code == SVM_EXIT_HLT || code == SVM_EXIT_IDLE_HLT ||
		       code == SVM_VMGEXIT_AP_HLT_LOOP;
	default:
		return code == KVM_EXIT_HLT || code == KVM_EXIT_AP_RESET_HOLD;
	}
}

static __always_inline __u64 cost_ns(struct ended *end)
{
	if (!is_halt(end->kind, end->code) || end->err)
		return end->total_ns;
	return end->total_ns - end->parts.asleep_ns - end->parts.userspace_ns;
}

/* Not inlined: as a function's argument, the type stays in the BTF that Rust's is made from. */
static __noinline void fill(struct slow_exit *s, struct vcpu_thread *t, __u32 tid,
			    struct ended *end)
{
	s->end_ns = bpf_ktime_get_ns();
	s->vm = t->vm;
	s->total_ns = end->total_ns;
	s->parts = end->parts;
	s->detail = end->detail;
	s->tid = tid;
	s->kind = end->kind;
	s->code = end->code;
	s->err = end->err;
	__builtin_memcpy(s->comm, t->comm, sizeof(s->comm));
}

static __always_inline void tell(struct vcpu_thread *t, __u32 tid, struct ended *end)
{
	struct slow_exit *s = bpf_ringbuf_reserve(&slow, sizeof(*s), 0);

	if (!s) {
		__sync_fetch_and_add(&lost_slow, 1);
		return;
	}
	fill(s, t, tid, end);
	bpf_ringbuf_submit(s, 0);
}

/* Not inlined: it is called from four programs, and the verifier's time is the tool's start. */
static __noinline int count(struct vcpu_thread *t, __u32 tid, struct ended *end)
{
	struct exits_key key = {};
	struct exits *e;

	if (by_thread) {
		key.vm = t->vm;
		key.writer = tid;
	} else {
		key.writer = bpf_get_smp_processor_id();
	}
	if (with_detail || with_stacks)
		key.detail = end->detail;
	key.kind = end->kind;
	key.code = end->code;
	key.err = end->err;
	key.octave = hist_octave_of(end->total_ns);
	e = find_exits(t, &key);
	if (!e) {
		__sync_fetch_and_add(&lost, 1);
		return 0;
	}
	/* x86 keeps the order of stores: only the compiler could change it. */
	e->begun++;
	barrier();
	hist_record(&e->hist, key.octave, end->total_ns, 1, end->total_ns);
	e->parts.userspace_ns += end->parts.userspace_ns;
	e->parts.asleep_ns += end->parts.asleep_ns;
	e->parts.runqueue_ns += end->parts.runqueue_ns;
	barrier();
	e->done++;
	return 0;
}

static __always_inline void exit_begins(struct vcpu_thread *t, __u32 kind, __u32 code)
{
	/* How long the one before was cannot be told. */
	if (t->exit_ns)
		__sync_fetch_and_add(&unended, 1);
	__builtin_memset(&t->parts, 0, sizeof(t->parts));
	t->exit_kind = kind;
	t->exit_code = code;
	t->exit_detail = 0;
	t->off_ns = 0;
	if (!exits_seen)
		exits_seen = true;
	t->exit_ns = bpf_ktime_get_ns();
}

static __always_inline void exit_ends(struct vcpu_thread *t, __u32 tid, __u64 now)
{
	struct ended end = {.parts = t->parts, .detail = t->exit_detail};

	end.total_ns = now - t->exit_ns;
	end.kind = t->exit_kind;
	end.code = t->exit_code;
	if (with_stacks)
		end.detail = 0;
	t->exit_ns = 0;
	count(t, tid, &end);
	if (slower_ns && cost_ns(&end) > slower_ns)
		tell(t, tid, &end);
}

/* The run queue's part of what the VMM took is in the kernel's books, as runq.bpf.h explains. */
static __always_inline void user_ends(struct vcpu_thread *t, __u32 tid, __u64 now)
{
	struct ended end = {.kind = EXIT_USERSPACE, .detail = t->user_detail};

	if (!wanted(t)) {
		t->user_ns = 0;
		return;
	}
	end.total_ns = now - t->user_ns;
	end.code = t->user_code;
	end.err = t->user_err;
	end.parts.runqueue_ns = current_run_delay_ns() - t->user_run_delay_ns;
	if (end.parts.runqueue_ns > end.total_ns)
		end.parts.runqueue_ns = end.total_ns;
	end.parts.userspace_ns = end.total_ns - end.parts.runqueue_ns;
	t->user_ns = 0;
	t->parts.userspace_ns += end.parts.userspace_ns;
	t->parts.runqueue_ns += end.parts.runqueue_ns;
	count(t, tid, &end);
	/* Otherwise it is part of an exit from guest mode, which will be told. */
	if (slower_ns && !t->exit_ns && cost_ns(&end) > slower_ns)
		tell(t, tid, &end);
}

/*
 * What is known of a vCPU's access. Of a read from a port the tracepoint tells only when the VMM
 * has answered: what KVM and VMM share of the vCPU tells before.
 */
static __always_inline __u64 run_detail(struct vcpu_thread *t, __u32 reason)
{
	struct kvm_vcpu *vcpu = (void *)t->vcpu;
	struct kvm_run run = {};

	if (!vcpu || !bpf_core_type_exists(struct kvm_vcpu))
		return t->exit_detail;
	bpf_probe_read_kernel(&run, sizeof(run), BPF_CORE_READ(vcpu, run));
	switch (reason) {
	case KVM_EXIT_IO:
		return DETAIL(DETAIL_PIO, run.io.port | (run.io.direction ? PIO_OUT : 0));
	case KVM_EXIT_MMIO:
		return DETAIL(DETAIL_MMIO,
			      run.mmio.phys_addr | (run.mmio.is_write ? MMIO_WRITE : 0));
	case KVM_EXIT_X86_RDMSR:
		return DETAIL(DETAIL_MSR, run.msr.index);
	case KVM_EXIT_X86_WRMSR:
		return DETAIL(DETAIL_MSR, run.msr.index | MSR_WRITE);
	case KVM_EXIT_HYPERCALL:
		return DETAIL(DETAIL_HYPERCALL, run.hypercall.nr);
	default:
		return 0;
	}
}

static __always_inline void user_begins(void *ctx, __u32 reason, __s32 err)
{
	struct vcpu_thread *t = this_thread();
	__s64 stack;

	if (!t || !may_be_wanted(t))
		return;
	t->user_code = reason;
	t->user_err = err < 0 ? err : 0;
	t->user_detail = 0;
	if (with_detail) {
		t->user_detail = run_detail(t, reason);
		if (!t->exit_detail)
			t->exit_detail = t->user_detail;
	}
	if (with_stacks) {
		stack = bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);
		if (stack >= 0)
			t->user_detail = DETAIL(DETAIL_STACK, stack);
	}
	t->user_run_delay_ns = current_run_delay_ns();
	t->user_ns = bpf_ktime_get_ns();
}

static __always_inline void run_begins(__u32 tid)
{
	struct kvm_vcpu *vcpu = current_vcpu();
	struct vcpu_thread *t = this_thread();
	__u64 now;

	if (!t)
		return;
	if (!runs_seen)
		runs_seen = true;
	now = bpf_ktime_get_ns();
	/* An exit in which the tool began to watch this thread was likely the same vCPU's. */
	if (vcpu && !t->vcpu)
		set_vcpu(t, vcpu);
	if (t->user_ns)
		user_ends(t, tid, now);
	if (!vcpu || t->vcpu == (__u64)vcpu)
		return;
	/* Some VMMs (gVisor) let any thread run any vCPU: so far the other one's exit is known. */
	if (t->exit_ns)
		exit_ends(t, tid, now);
	set_vcpu(t, vcpu);
}

/* What is in progress ends with its thread. */
static __always_inline void thread_ends(__u32 tid)
{
	struct vcpu_thread *t = bpf_map_lookup_elem(&threads, &tid);
	__u64 now;

	if (!t || over)
		return;
	now = bpf_ktime_get_ns();
	if (t->user_ns)
		user_ends(t, tid, now);
	if (t->exit_ns)
		exit_ends(t, tid, now);
	bpf_map_delete_elem(&threads, &tid);
}

/* The first access of an exit stands for all of it, as for a string of port writes. */
static __always_inline void add_detail(__u64 detail)
{
	struct vcpu_thread *t = this_thread();

	if (t && t->exit_ns && !t->exit_detail)
		t->exit_detail = detail;
}

/*
 * A wait that is asleep ends with one on the run queue. How long that was is in the kernel's books:
 * what they have added since, and from last_queued to the run queue's clock.
 */
static __always_inline void on_cpu(struct vcpu_thread *t, struct task_struct *task)
{
	__u64 off_ns = bpf_ktime_get_ns() - t->off_ns;
	__u64 wait_ns = task->sched_info.run_delay - t->off_run_delay_ns + task_queued_ns(task);

	/* Not by books that count the sleep of a task that was moved meanwhile: see runqlat(8). */
	if (wait_ns > off_ns || !t->off_asleep)
		wait_ns = off_ns;
	t->parts.runqueue_ns += wait_ns;
	t->parts.asleep_ns += off_ns - wait_ns;
	t->off_ns = 0;
}

static __always_inline struct vcpu_thread *exiting_thread(struct task_struct *task)
{
	__u32 tid = task->pid;
	struct vcpu_thread *t;

	/* All but vCPUs' threads inside KVM_RUN cost no look-up. */
	if (!task_in_vcpu(task) || over)
		return NULL;
	t = bpf_map_lookup_elem(&threads, &tid);
	return t && t->exit_ns && !t->user_ns ? t : NULL;
}

static __always_inline void exit_recorded(struct kvm_exit_record *record)
{
	struct vcpu_thread *t = this_thread();
	__u16 port = record->info1 >> 16;
	bool in;

	if (!t)
		return;
	t->vm.vcpu_id = record->vcpu_id;
	if (!wanted(t))
		return;
	exit_begins(t, record->isa, record->exit_reason);
	if (!with_detail)
		return;
	/* Intel SDM, "Exit Qualification for I/O Instructions"; AMD APM, "EXITINFO1 for IOIO". */
	if (record->isa == EXIT_VMX && (__u16)record->exit_reason == VMX_EXIT_IO_INSTRUCTION)
		in = record->info1 & 1 << 3;
	else if (record->isa == EXIT_SVM && record->exit_reason == SVM_EXIT_IOIO)
		in = record->info1 & 1;
	else
		return;
	t->exit_detail = DETAIL(DETAIL_PIO, port | (in ? 0 : PIO_OUT));
}

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch, bool preempt, struct task_struct *prev, struct task_struct *next)
{
	struct vcpu_thread *t = exiting_thread(prev);

	if (t) {
		t->off_asleep = !preempt && !task_runnable(prev);
		t->off_run_delay_ns = prev->sched_info.run_delay;
		t->off_ns = bpf_ktime_get_ns();
	}
	t = exiting_thread(next);
	if (t && t->off_ns)
		on_cpu(t, next);
	return 0;
}

SEC("raw_tp/kvm_exit")
int kvm_exit(struct bpf_raw_tracepoint_args *ctx)
{
	struct kvm_vcpu *vcpu = (void *)ctx->args[0];
	struct vcpu_thread *t = this_thread();

	if (!t)
		return 0;
	set_vcpu(t, vcpu);
	if (wanted(t))
		exit_begins(t, ctx->args[1], vcpu_exit_reason(vcpu, ctx->args[1]));
	return 0;
}

/*
 * What programs on (not raw) tracepoints return: 0 would keep the event from perf, whoever uses it
 * (perf_trace_run_bpf_submit() in kernel/events/core.c).
 */
#define FOR_PERF_TOO 1

/*
 * Where KVM's types are not known, from the tracepoint's record, at twice the cost. Its layout has
 * been the same since Linux 5.10 ("KVM: x86: Add intr/vectoring info and error code to kvm_exit
 * tracepoint"); user space compares.
 */
SEC("tp/kvm/kvm_exit")
int kvm_exit_record(struct kvm_exit_record *ctx)
{
	exit_recorded(ctx);
	return FOR_PERF_TOO;
}

SEC("raw_tp/kvm_entry")
int kvm_entry(void *ctx)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct vcpu_thread *t = bpf_map_lookup_elem(&threads, &tid);

	if (t && t->exit_ns && !over)
		exit_ends(t, tid, bpf_ktime_get_ns());
	return 0;
}

/*
 * These and those below are no raw tracepoints. There programs may be preempted (seen on Linux 7.2:
 * "bpf: Have __bpf_trace_run() use rcu_read_lock_dont_migrate()"), and the kernel then skips them
 * for all other threads of that CPU. kvm_exit and kvm_entry fire with interrupts off.
 */
SEC("tp/kvm/kvm_userspace_exit")
int kvm_userspace_exit(struct kvm_userspace_exit_record *ctx)
{
	user_begins(ctx, ctx->reason, ctx->err);
	return FOR_PERF_TOO;
}

SEC("tp/kvm/kvm_fpu")
int kvm_fpu(struct kvm_fpu_record *ctx)
{
	if (ctx->load)
		run_begins(bpf_get_current_pid_tgid());
	return FOR_PERF_TOO;
}

SEC("tp/sched/sched_process_exit")
int sched_process_exit(void *ctx)
{
	thread_ends(bpf_get_current_pid_tgid());
	return FOR_PERF_TOO;
}

SEC("tp/kvm/kvm_pio")
int kvm_pio(struct kvm_pio_record *ctx)
{
	add_detail(DETAIL(DETAIL_PIO, (__u16)ctx->port | (ctx->rw ? PIO_OUT : 0)));
	return FOR_PERF_TOO;
}

SEC("tp/kvm/kvm_mmio")
int kvm_mmio(struct kvm_mmio_record *ctx)
{
	/* KVM_TRACE_MMIO_WRITE in include/trace/events/kvm.h */
	add_detail(DETAIL(DETAIL_MMIO, ctx->gpa | (ctx->type == 2 ? MMIO_WRITE : 0)));
	return FOR_PERF_TOO;
}

SEC("tp/kvm/kvm_msr")
int kvm_msr(struct kvm_msr_record *ctx)
{
	add_detail(DETAIL(DETAIL_MSR, ctx->ecx | (ctx->write ? MSR_WRITE : 0)));
	return FOR_PERF_TOO;
}

SEC("tp/kvm/kvm_hypercall")
int kvm_hypercall(struct kvm_hypercall_record *ctx)
{
	add_detail(DETAIL(DETAIL_HYPERCALL, (__u32)ctx->nr));
	return FOR_PERF_TOO;
}

SEC("tp/kvm/kvm_vcpu_wakeup")
int kvm_vcpu_wakeup(struct kvm_vcpu_wakeup_record *ctx)
{
	add_detail(DETAIL(DETAIL_HALT, ctx->waited ? HALT_SLEPT : HALT_POLLED));
	return FOR_PERF_TOO;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
