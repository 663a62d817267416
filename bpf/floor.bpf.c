// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The floor of `make bench`: what the kernel takes for programs that do nothing. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch)
{
	return 0;
}

SEC("tp_btf/sched_migrate_task")
int BPF_PROG(sched_migrate_task)
{
	return 0;
}

SEC("raw_tp/kvm_exit")
int kvm_exit(void *ctx)
{
	return 0;
}

SEC("raw_tp/kvm_entry")
int kvm_entry(void *ctx)
{
	return 0;
}

/* As the tools' own: 0 would keep the event from perf. */
SEC("tp/kvm/kvm_userspace_exit")
int kvm_userspace_exit(void *ctx)
{
	return 1;
}

SEC("tp/kvm/kvm_fpu")
int kvm_fpu(void *ctx)
{
	return 1;
}

SEC("tp/kvm/kvm_vcpu_wakeup")
int kvm_vcpu_wakeup(void *ctx)
{
	return 1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
