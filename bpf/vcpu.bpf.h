/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* From a task to the vCPU that it runs. */
#ifndef __VCPU_BPF_H
#define __VCPU_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include "compat.bpf.h"

/*
 * KVM registers a preempt notifier on the thread that is inside a vCPU's ioctl (vcpu_load() in
 * virt/kvm/kvm_main.c), asleep in HLT included, and nothing else in the kernel registers any.
 */
static __always_inline bool task_in_vcpu(struct task_struct *task)
{
	/* CONFIG_PREEMPT_NOTIFIERS, which KVM selects: without it there are no vCPUs. */
	if (!bpf_core_field_exists(task->preempt_notifiers))
		return false;
	return task->preempt_notifiers.first;
}

/*
 * The vCPU of a preempt notifier; NULL if there is none, or the kernel has no BTF of KVM's types
 * (Linux 5.10 has none of modules, and of the kernel's own only if that happens to name them).
 */
static __always_inline struct kvm_vcpu *notified_vcpu(struct hlist_node *notifier)
{
	if (!notifier || !bpf_core_type_exists(struct kvm_vcpu))
		return NULL;
	return (void *)notifier - bpf_core_field_offset(struct kvm_vcpu, preempt_notifier.link);
}

/* The vCPU in whose ioctl the current task is. */
static __always_inline struct kvm_vcpu *current_vcpu(void)
{
	if (!bpf_core_field_exists(struct task_struct, preempt_notifiers))
		return NULL;
	return notified_vcpu(current_preempt_notifier());
}

/* The vCPU in whose ioctl @task is. */
static __always_inline struct kvm_vcpu *task_vcpu(struct task_struct *task)
{
	if (!bpf_core_field_exists(task->preempt_notifiers))
		return NULL;
	return notified_vcpu(BPF_CORE_READ(task, preempt_notifiers.first));
}

#endif /* __VCPU_BPF_H */
