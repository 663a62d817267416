/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A vCPU's thread: which are wanted, where each is, and where its time has gone. */
#ifndef __LAG_BPF_H
#define __LAG_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "compat.bpf.h"
#include "pids.bpf.h"
#include "vcpu.bpf.h"
#include "vcpulag.h"

const volatile __s32 only_tgid = 0;
const volatile __s32 only_tid = 0;
const volatile __s32 only_vcpu_id = -1;
const volatile __u64 only_cgroup_id = 0;
const volatile __u32 only_cgroup_level = 0;

/* vCPUs that found no room in the map. */
__u64 lost_vcpus;
/* Waits that sched_switch did not show: in the times by the kernel's books, but in no histogram. */
__u64 unseen_waits;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* what the host can have, set at load */
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct lag_vcpu);
} vcpus SEC(".maps");

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
	/* A memory barrier, too: before this side looks for the iterator's claim. */
	__sync_fetch_and_add(&v->seq, 1);
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
		/* The iterator and the thread itself may find it at the same moment. */
		v = bpf_map_lookup_elem(&vcpus, &tid);
		if (!v || v->ended_ns)
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
	v->seen_pcount = BPF_CORE_READ(task, sched_info.pcount);
	v->seen_run_delay_ns = BPF_CORE_READ(task, sched_info.run_delay);
	v->blamed_run_delay_ns = v->seen_run_delay_ns;
	v->seen_exec_ns = BPF_CORE_READ(task, se.sum_exec_runtime);
	v->seen_nvcsw = BPF_CORE_READ(task, nvcsw);
	v->off_cfs_rq = (__u64)BPF_CORE_READ(task, se.cfs_rq);
	v->off_throttled_ns = cfs_rq_throttled_ns((void *)v->off_cfs_rq);
	/* The last: before, it is nobody's to use. */
	barrier();
	*(volatile __u64 *)&v->known_ns = v->since_ns;
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

/* Whether @v's guest has nothing to do, or has not started it; -1 if KVM's types are not known. */
static __always_inline int guest_halted(struct lag_vcpu *v)
{
	struct kvm_vcpu *vcpu = (void *)v->vcpu;

	if (!vcpu || !bpf_core_field_exists(vcpu->arch.mp_state))
		return -1;
	switch (BPF_CORE_READ(vcpu, arch.mp_state)) {
	case KVM_MP_STATE_HALTED:
	case KVM_MP_STATE_UNINITIALIZED:
	case KVM_MP_STATE_INIT_RECEIVED:
	case KVM_MP_STATE_AP_RESET_HOLD:
		return 1;
	}
	return 0;
}

/*
 * Where @task is that goes to sleep, or has. A vCPU waits in HLT, or for its guest to start it,
 * interruptibly; hardly anything else in KVM_RUN sleeps so.
 */
static __always_inline __u32 asleep_place(struct lag_vcpu *v, struct task_struct *task)
{
	if (!v->inside)
		return LAG_VMM_ASLEEP;
	return task_uninterruptible(task) || !guest_halted(v) ? LAG_BLOCKED : LAG_HALTED;
}

static __always_inline void slept_at(struct lag_vcpu *v, __u32 place, __u64 ns)
{
	switch (place) {
	case LAG_HALTED:
		v->times.halt_ns += ns;
		break;
	case LAG_BLOCKED:
		v->times.blocked_ns += ns;
		break;
	case LAG_VMM_ASLEEP:
		v->times.vmm_ns += ns;
		break;
	}
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

	wait_ns = BPF_CORE_READ(task, sched_info.run_delay) - v->seen_run_delay_ns + queued_ns;
	if (wait_ns > left_ns)
		wait_ns = left_ns;
	v->times.wait_wakeup_ns += wait_ns;
	left_ns -= wait_ns;

	/* Counted in __schedule() before sched_switch, for who goes to sleep. */
	slept = BPF_CORE_READ(task, nvcsw) - v->seen_nvcsw - sleeps;
	if (place == LAG_RUNNING || place == LAG_PREEMPTED)
		place = asleep_place(v, task);
	else
		slept = 1;
	run_ns = BPF_CORE_READ(task, se.sum_exec_runtime) - v->seen_exec_ns;
	run_ns = run_ns > v->on_cpu_ns ? run_ns - v->on_cpu_ns : 0;
	if (run_ns > left_ns || !slept)
		run_ns = left_ns;
	if (v->inside) {
		v->times.run_ns += run_ns;
	} else {
		v->times.vmm_ns += run_ns;
		v->times.vmm_cpu_ns += run_ns;
	}
	slept_at(v, place, left_ns - run_ns);
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

#endif /* __LAG_BPF_H */
