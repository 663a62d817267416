// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The floor of `make bench`: what the kernel takes for a program that does nothing. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

SEC("tp_btf/sched_switch")
int BPF_PROG(sched_switch)
{
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
