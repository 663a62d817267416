/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every difference between kernels: one helper each, naming the change that made it necessary. */
#ifndef __COMPAT_BPF_H
#define __COMPAT_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
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

static __always_inline u64 cgroup_above_id(struct cgroup *cgrp, u32 level)
{
	struct cgroup___pre_61 *old = (void *)cgrp;
	struct cgroup *ancestor = NULL;
	u64 id = 0;

	if (bpf_core_field_exists(cgrp->ancestors)) {
		bpf_core_read(&ancestor, sizeof(ancestor), &cgrp->ancestors[level]);
		return BPF_CORE_READ(ancestor, kn, id);
	}
	bpf_core_read(&id, sizeof(id), &old->ancestor_ids[level]);
	return id;
}

static __always_inline u64 cgroup_ancestor_id(struct cgroup *cgrp, u32 level)
{
	if (cgrp->level < (int)level)
		return 0;
	if (cgrp->level == (int)level)
		return cgrp->kn->id;
	return cgroup_above_id(cgrp, level);
}

/* The same of a task that raw tracepoints know: the verifier has no type for what they read. */
static __always_inline u64 task_ancestor_cgroup_id(struct task_struct *task, u32 level)
{
	struct cgroup *cgrp = BPF_CORE_READ(task, cgroups, dfl_cgrp);
	int own = BPF_CORE_READ(cgrp, level);

	if (own < (int)level)
		return 0;
	return own == (int)level ? BPF_CORE_READ(cgrp, kn, id) : cgroup_above_id(cgrp, level);
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

/* TASK_UNINTERRUPTIBLE is 2, as it has always been. */
static __always_inline bool task_uninterruptible(struct task_struct *task)
{
	struct task_struct___pre_514 *old = (void *)task;

	if (bpf_core_field_exists(task->__state))
		return BPF_CORE_READ(task, __state) & 2;
	return BPF_CORE_READ(old, state) & 2;
}

/* TASK_INTERRUPTIBLE is 1, as it has always been. */
static __always_inline bool task_interruptible(struct task_struct *task)
{
	struct task_struct___pre_514 *old = (void *)task;

	if (bpf_core_field_exists(task->__state))
		return BPF_CORE_READ(task, __state) & 1;
	return BPF_CORE_READ(old, state) & 1;
}

/*
 * For how long the tasks of @cfs_rq have not been allowed to run, by their own group's quota or one
 * above; counted when that is over (tg_unthrottle_up() in kernel/sched/fair.c). Linux 6.6
 * (677ea015f231, "sched: add throttled time stat for throttled children") has it in nanoseconds.
 * Before, all there is is for the load's averages, on a clock that runs slower on slow CPUs;
 * Linux 5.19 (64eaf50731ac, "sched/fair: Fix cfs_rq_clock_pelt() for throttled cfs_rq") renamed
 * that.
 */
struct cfs_rq___pre_519 {
	u64 throttled_clock_task_time;
} __attribute__((preserve_access_index));

static __always_inline u64 cfs_rq_throttled_ns(struct cfs_rq *cfs_rq)
{
	struct cfs_rq___pre_519 *old = (void *)cfs_rq;

	if (bpf_core_field_exists(cfs_rq->throttled_clock_self_time))
		return BPF_CORE_READ(cfs_rq, throttled_clock_self_time);
	if (bpf_core_field_exists(cfs_rq->throttled_clock_pelt_time))
		return BPF_CORE_READ(cfs_rq, throttled_clock_pelt_time);
	if (bpf_core_field_exists(old->throttled_clock_task_time))
		return BPF_CORE_READ(old, throttled_clock_task_time);
	return 0; /* without CONFIG_CFS_BANDWIDTH there are no quotas */
}

/*
 * What the kernel's books say the current task has waited for CPUs. Since Linux 5.11 (3ca1032ab7ab,
 * "bpf: Implement get_current_task_btf and RET_PTR_TO_BTF_ID") its fields are loads, not each a
 * call of a helper.
 */
#define HAS_TYPED_CURRENT                                                                          \
	bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf)

static __always_inline u64 current_run_delay_ns(void)
{
	struct task_struct *task;

	if (HAS_TYPED_CURRENT)
		return bpf_get_current_task_btf()->sched_info.run_delay;
	task = (void *)bpf_get_current_task();
	return BPF_CORE_READ(task, sched_info.run_delay);
}

/* Likewise how often it has got one. */
static __always_inline u64 current_pcount(void)
{
	struct task_struct *task;

	if (HAS_TYPED_CURRENT)
		return bpf_get_current_task_btf()->sched_info.pcount;
	task = (void *)bpf_get_current_task();
	return BPF_CORE_READ(task, sched_info.pcount);
}

/* Likewise the first of its preempt notifiers. */
static __always_inline struct hlist_node *current_preempt_notifier(void)
{
	struct task_struct *task;

	if (HAS_TYPED_CURRENT)
		return bpf_get_current_task_btf()->preempt_notifiers.first;
	task = (void *)bpf_get_current_task();
	return BPF_CORE_READ(task, preempt_notifiers.first);
}

/*
 * Why the guest was left, as kvm_exit's own record says (get_exit_info() of either vendor). Linux
 * 5.16 ("KVM: x86: Get exit_reason as part of kvm_x86_ops.get_exit_info") took it from the
 * tracepoint's arguments. If neither vendor's type is known, the program is refused, and
 * that record has to serve.
 *
 * Linux 6.16 ("KVM: VMX: Move common fields of struct vcpu_{vmx,tdx} to a struct") moved Intel's.
 */
struct vcpu_vmx___pre_616 {
	union vmx_exit_reason exit_reason;
} __attribute__((preserve_access_index));

static __always_inline u32 vcpu_exit_reason(struct kvm_vcpu *vcpu, u32 isa)
{
	struct vcpu_vmx___pre_616 *old = (void *)vcpu;
	struct vcpu_vmx *vmx = (void *)vcpu;
	struct vcpu_svm *svm = (void *)vcpu;

	/* KVM_ISA_SVM. A kernel with KVM built in knows both. */
	if (isa == 2 && bpf_core_type_exists(struct vcpu_svm))
		return BPF_CORE_READ(svm, vmcb, control.exit_code);
	if (bpf_core_field_exists(vmx->vt))
		return BPF_CORE_READ(vmx, vt.exit_reason.full);
	if (bpf_core_type_exists(struct vcpu_svm) && !bpf_core_type_exists(struct vcpu_vmx))
		return 0;
	return BPF_CORE_READ(old, exit_reason.full);
}

/*
 * True if madvise(2) or prctl(2) has asked for @mm's pages to be merged: MMF_VM_MERGEABLE is bit
 * 16, as it has always been. Linux 6.18 made the flags a bitmap (mm_flags_test()).
 */
struct mm_struct___pre_618 {
	unsigned long flags;
} __attribute__((preserve_access_index));

static __always_inline bool mm_mergeable(struct mm_struct *mm)
{
	struct mm_struct___pre_618 *old = (void *)mm;
	unsigned long flags;

	if (bpf_core_field_exists(old->flags))
		flags = BPF_CORE_READ(old, flags);
	else
		flags = BPF_CORE_READ(mm, flags.__mm_flags[0]);
	return flags & 1UL << 16;
}

/*
 * How many of its pages KSM has replaced by the kernel's page of zeroes. Counted since Linux 6.6
 * (6080d19f0704, "ksm: add ksm zero pages for each process"); atomic since 6.11.
 */
struct mm_struct___pre_611 {
	unsigned long ksm_zero_pages;
} __attribute__((preserve_access_index));

static __always_inline u64 mm_zero_pages(struct mm_struct *mm)
{
	struct mm_struct___pre_611 *old = (void *)mm;

	if (bpf_core_field_exists(old->ksm_zero_pages))
		return BPF_CORE_READ(old, ksm_zero_pages);
	if (bpf_core_field_exists(mm->ksm_zero_pages))
		return BPF_CORE_READ(mm, ksm_zero_pages.counter);
	return 0;
}

/*
 * The size of what KSM keeps for each page that it has looked at: struct rmap_item, which Linux 6.1
 * (21fbd59136e0, "ksm: add the ksm prefix to the names of the ksm private structures") renamed.
 */
struct rmap_item {
	unsigned long address;
} __attribute__((preserve_access_index));

static __always_inline u64 rmap_item_bytes(void)
{
	if (bpf_core_type_exists(struct ksm_rmap_item))
		return bpf_core_type_size(struct ksm_rmap_item);
	return bpf_core_type_size(struct rmap_item);
}

/* True if @page is within a larger one, but not its first. Linux 7.0 renamed the field. */
struct page___since_70 {
	unsigned long compound_info;
} __attribute__((preserve_access_index));

static __always_inline bool page_tail(struct page *page)
{
	struct page___since_70 *new = (void *)page;

	if (bpf_core_field_exists(page->compound_head))
		return BPF_CORE_READ(page, compound_head) & 1;
	return BPF_CORE_READ(new, compound_info) & 1;
}

#endif /* __COMPAT_BPF_H */
