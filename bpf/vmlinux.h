/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel types that the programs read, and of each only the fields they read: CO-RE moves every
 * access to where the running kernel has the field. Differences are in compat.bpf.h.
 */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

typedef unsigned char __u8;
typedef signed char __s8;
typedef unsigned short __u16;
typedef short __s16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;

typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s64 s64;
typedef _Bool bool;
typedef int pid_t;

enum {
	false = 0,
	true = 1,
};

/* include/uapi/linux/bpf.h */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_STACK_TRACE = 7,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_RINGBUF = 27,
	BPF_MAP_TYPE_TASK_STORAGE = 29,
};

enum {
	BPF_F_NO_PREALLOC = 1U << 0,
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_LOCAL_STORAGE_GET_F_CREATE = 1U << 0,
	BPF_F_USER_STACK = 1U << 8,
};

enum bpf_func_id {
	BPF_FUNC_get_current_task_btf = 158,
};

/* The context of raw tracepoints: their arguments as registers. */
struct bpf_raw_tracepoint_args {
	u64 args[0];
};

/* Contexts of iterators: their layout is fixed, so that nothing has to be moved. */
struct seq_file;
struct task_struct;

struct bpf_iter_meta {
	struct seq_file *seq;
	u64 session_id;
	u64 seq_num;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

/* Records of tracepoints, as far as they are read; common/src/kvm.rs compares with the kernel's. */
struct kvm_exit_record {
	u64 common;
	u32 exit_reason;
	u32 pad;
	u64 guest_rip;
	u32 isa;
	u32 pad2;
	u64 info1;
	u64 info2;
	u32 intr_info;
	u32 error_code;
	u32 vcpu_id;
};

struct kvm_userspace_exit_record {
	u64 common;
	u32 reason;
	int err; /* errno, which is a macro to some */
};

struct kvm_fpu_record {
	u64 common;
	u32 load;
};

struct kvm_pio_record {
	u64 common;
	u32 rw;
	u32 port;
};

struct kvm_mmio_record {
	u64 common;
	u32 type;
	u32 len;
	u64 gpa;
};

struct kvm_msr_record {
	u64 common;
	u32 write;
	u32 ecx;
};

struct kvm_hypercall_record {
	u64 common;
	u64 nr;
};

struct kvm_vcpu_wakeup_record {
	u64 common;
	u64 ns;
	bool waited;
};

/* include/uapi/linux/kvm.h: what KVM and the VMM share of a vCPU has a fixed layout, too. */
struct kvm_run {
	u8 request_interrupt_window;
	u8 immediate_exit;
	u8 padding1[6];
	u32 exit_reason;
	u8 ready_for_interrupt_injection;
	u8 if_flag;
	u16 flags;
	u64 cr8;
	u64 apic_base;
	union {
		struct {
			u8 direction;
			u8 size;
			u16 port;
			u32 count;
			u64 data_offset;
		} io;
		struct {
			u64 phys_addr;
			u8 data[8];
			u32 len;
			u8 is_write;
		} mmio;
		struct {
			u8 error;
			u8 pad[7];
			u32 reason;
			u32 index;
			u64 data;
		} msr;
		struct {
			u64 nr;
		} hypercall;
	};
};

struct mm_struct;

struct ksm_merge_with_ksm_page_record {
	u64 common;
	u64 ksm_page;
	u64 pfn;
	u64 rmap_item;
	struct mm_struct *mm;
	int err;
};

struct ksm_merge_one_page_record {
	u64 common;
	u64 pfn;
	u64 rmap_item;
	struct mm_struct *mm;
	int err;
};

struct ksm_advisor_record {
	u64 common;
	s64 scan_time;
	u64 pages_to_scan;
	u32 cpu_percent;
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct kernfs_node {
	u64 id;
};

struct cgroup {
	int level;
	struct kernfs_node *kn;
	struct cgroup *ancestors[];
};

struct css_set {
	struct cgroup *dfl_cgrp;
};

struct ns_common {
	unsigned int inum;
};

struct pid_namespace {
	struct ns_common ns;
};

struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	unsigned int level;
	struct upid numbers[1];
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct rq {
	u64 clock;
	u64 clock_task;
	int cpu;
	struct task_struct *curr;
};

struct cfs_rq {
	struct rq *rq;
	u64 throttled_clock_pelt_time;
	u64 throttled_clock_self_time;
};

struct sched_entity {
	u64 sum_exec_runtime;
	struct cfs_rq *cfs_rq;
};

struct sched_info {
	unsigned long pcount;
	unsigned long long run_delay;
	unsigned long long last_arrival;
	unsigned long long last_queued;
};

struct task_struct {
	unsigned int __state;
	/*
	 * int, in Linux 7.2 u8: libbpf changes the size of a load if it is unsigned here,
	 * but not of what BPF_CORE_READ() copies.
	 */
	unsigned int on_cpu;
	unsigned int on_rq;
	struct sched_entity se;
	unsigned int flags;
	struct hlist_head preempt_notifiers;
	struct sched_info sched_info;
	pid_t pid;
	pid_t tgid;
	u64 start_boottime;
	struct task_struct *group_leader;
	struct pid *thread_pid;
	unsigned long nvcsw;
	unsigned long nivcsw;
	struct mm_struct *mm;
	char comm[16];
	struct css_set *cgroups;
};

typedef struct {
	unsigned long __mm_flags[1];
} mm_flags_t;

typedef struct {
	s64 counter;
} atomic_long_t;

struct mm_struct {
	mm_flags_t flags;
	struct task_struct *owner;
	unsigned long ksm_merging_pages;
	unsigned long ksm_rmap_items;
	atomic_long_t ksm_zero_pages;
};

struct vm_area_struct {
	struct mm_struct *vm_mm;
};

typedef struct {
	unsigned long pte;
} pte_t;

struct vm_fault {
	struct vm_area_struct *vma;
	pte_t orig_pte;
};

struct page {
	void *mapping;
	unsigned long compound_head;
};

/* mm/ksm.c */
struct ksm_scan {
	unsigned long seqnr;
};

struct ksm_rmap_item {
	unsigned long address;
};

struct preempt_notifier {
	struct hlist_node link;
};

#define E2BIG 7

/* include/uapi/linux/kvm.h */
enum {
	KVM_MP_STATE_UNINITIALIZED = 1,
	KVM_MP_STATE_INIT_RECEIVED = 2,
	KVM_MP_STATE_HALTED = 3,
	KVM_MP_STATE_AP_RESET_HOLD = 9,
};

struct kvm_vcpu_arch {
	int mp_state;
};

struct kvm_vcpu {
	struct preempt_notifier preempt_notifier;
	int vcpu_id;
	struct kvm_run *run;
	struct kvm_vcpu_arch arch;
};

struct vmcb_control_area {
	u32 exit_code; /* 64 bits wide since Linux 6.19, with nothing more in them */
};

struct vmcb {
	struct vmcb_control_area control;
};

struct vcpu_svm {
	struct kvm_vcpu vcpu;
	struct vmcb *vmcb;
};

union vmx_exit_reason {
	u32 full;
};

struct vcpu_vt {
	union vmx_exit_reason exit_reason;
};

struct vcpu_vmx {
	struct kvm_vcpu vcpu;
	struct vcpu_vt vt;
};

#pragma clang attribute pop

#endif /* __VMLINUX_H__ */
