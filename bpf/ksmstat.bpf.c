// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * ksmstat: what ksmd does and how long it takes; what happens to whose memory; and, if that is
 * asked for, who writes to merged pages.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "compat.bpf.h"
#include "hist.bpf.h"
#include "ksmstat.h"

/* Full scans are seen by their own tracepoints, not at batches' ends. */
const volatile bool has_tracepoints;
const volatile bool with_stacks;
/* Whether somebody asks whose memory it is. */
const volatile bool by_process;

extern const void ksm_scan __ksym __weak;
extern const void vmemmap_base __ksym __weak;

/* Found out by look(): bytes of KSM's bookkeeping for a page, and what this kernel lets us know. */
__u64 item_bytes;
bool knows_merging_pages;
bool knows_zero_pages;
bool knows_owners;
bool knows_full_scans;
bool knows_pages;

/* All that counts only grows. */
__u64 merged;
__u64 merge_failed;
/* Those that failed, by errno. */
__u64 merge_errors[MERGE_ERRORS];
__u64 zero_merged;
__u64 batches;
__u64 scan_ns;
__u64 cow_breaks;
__u64 lost_processes;
__u64 lost_switches;
__u64 lost_cows;
__u64 lost_places;

/* What the kernel's advisor has decided last, and how often. */
__u64 advices;
__u64 advised_pages;
__s64 advised_scan_ms;
__u32 advised_cpu_percent;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KSM_KINDS *HIST_OCTAVES);
	__type(key, __u32);
	__type(value, struct hist_octave);
} hists SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* set at load */
	__type(key, struct ksm_process);
	__type(value, struct ksm_events);
} processes SEC(".maps");

/* ksmd alone records its own times. */
static __always_inline void record(enum ksm_kind kind, __u64 ns)
{
	__u32 octave = hist_octave_of(ns), index = kind * HIST_OCTAVES + octave;
	struct hist_octave *o = bpf_map_lookup_elem(&hists, &index);

	if (o)
		hist_record(o, octave, ns, 1, ns);
}

/* Everybody writes. Of two extremes at one moment either may stay, within what the slots say. */
static __always_inline void record_cow(__u64 ns)
{
	__u32 octave = hist_octave_of(ns), index = KSM_COW * HIST_OCTAVES + octave;
	struct hist_octave *o = bpf_map_lookup_elem(&hists, &index);

	if (o)
		hist_record_shared(o, octave, ns, 1, ns, false);
}

/*
 * The process whose memory @mm is: ksmd works on everybody's. It is nobody's as its last thread
 * ends; without CONFIG_MEMCG the kernel does not know.
 */
static __always_inline bool owner(struct mm_struct *mm, struct ksm_process *process)
{
	struct task_struct *task;

	if (!bpf_core_field_exists(mm->owner))
		return false;
	task = BPF_CORE_READ(mm, owner);
	task = BPF_CORE_READ(task, group_leader);
	process->tgid = BPF_CORE_READ(task, tgid);
	process->start_boottime_ns = BPF_CORE_READ(task, start_boottime);
	return process->tgid;
}

static __noinline struct ksm_events *events_of(struct ksm_process *process, struct mm_struct *mm)
{
	struct ksm_events *events, none = {};

	if (!process)
		return NULL;
	events = bpf_map_lookup_elem(&processes, process);
	if (events)
		return events;
	BPF_CORE_READ_STR_INTO(&none.comm, mm, owner, group_leader, comm);
	bpf_map_update_elem(&processes, process, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&processes, process);
}

/* SEC("tp/ksm/…"), not raw: see kvmexits.bpf.c. What they return: 0 would keep the event from perf.
 */
#define FOR_PERF_TOO 1

enum merge { MERGED, FAILED, ZERO };

static __always_inline void count_error(__s32 err)
{
	/* As 64 bits: old verifiers lose the bounds of 32. */
	__u64 error = -(__s64)err & (MERGE_ERRORS - 1);

	__sync_fetch_and_add(&merge_errors[error], 1);
}

static __always_inline void count_merge(struct mm_struct *mm, enum merge what)
{
	struct ksm_process process = {};
	struct ksm_events *events = NULL;

	__sync_fetch_and_add(what == MERGED ? &merged
			     : what == ZERO ? &zero_merged
					    : &merge_failed,
			     1);
	if (!by_process || !bpf_core_field_exists(mm->owner))
		return;
	if (owner(mm, &process))
		events = events_of(&process, mm);
	if (!events) {
		__sync_fetch_and_add(&lost_processes, 1);
		return;
	}
	__sync_fetch_and_add(what == MERGED ? &events->merged
			     : what == ZERO ? &events->zero_merged
					    : &events->merge_failed,
			     1);
}

/* For each place where a KSM page gets mapped: two for the first pair. */
SEC("tp/ksm/ksm_merge_with_ksm_page")
int ksm_merge_with_ksm_page(struct ksm_merge_with_ksm_page_record *ctx)
{
	if (ctx->err)
		count_error(ctx->err);
	count_merge(ctx->mm, ctx->err ? FAILED : MERGED);
	return FOR_PERF_TOO;
}

/* For pages of zeroes alone. */
SEC("tp/ksm/ksm_merge_one_page")
int ksm_merge_one_page(struct ksm_merge_one_page_record *ctx)
{
	if (ctx->err)
		count_error(ctx->err);
	count_merge(ctx->mm, ctx->err ? FAILED : ZERO);
	return FOR_PERF_TOO;
}

/* When the full scan that goes on began; 0 if that is not known. */
__u64 full_scan_since_ns;

static __always_inline void full_scan_ends(__u64 now_ns)
{
	if (full_scan_since_ns)
		record(KSM_FULL_SCAN, now_ns - full_scan_since_ns);
	full_scan_since_ns = 0;
}

SEC("tp/ksm/ksm_start_scan")
int ksm_start_scan(void *ctx)
{
	full_scan_since_ns = bpf_ktime_get_ns();
	return FOR_PERF_TOO;
}

SEC("tp/ksm/ksm_stop_scan")
int ksm_stop_scan(void *ctx)
{
	full_scan_ends(bpf_ktime_get_ns());
	return FOR_PERF_TOO;
}

SEC("tp/ksm/ksm_advisor")
int ksm_advisor(struct ksm_advisor_record *ctx)
{
	advised_pages = ctx->pages_to_scan;
	advised_scan_ms = ctx->scan_time;
	advised_cpu_percent = ctx->cpu_percent;
	advices++;
	return FOR_PERF_TOO;
}

/* ksmd as it was when it was last switched away from; its address, as it never ends. */
__u64 ksmd_task;
__u64 seen_switches;
__u64 seen_nvcsw;
__u64 seen_seqnr;
/* On its run queue's clock: when its batch began, or 0 if it sleeps. */
__u64 batch_since_ns;
/* Whether that is known. */
bool knows_batch;
/* Whether the next batch is the first of a full scan. */
bool full_scan_next;

/*
 * Where no tracepoint tells: KSM's cursor knows how many full scans there were. One ends with a
 * batch (scan_get_next_rmap_item() finds no more, and ksm_do_scan() returns), and the next one
 * begins with the next batch.
 */
static __always_inline void batch_begins_for_full_scan(__u64 since_ns)
{
	if (full_scan_next)
		full_scan_since_ns = since_ns;
	full_scan_next = false;
}

static __always_inline void batch_ends_for_full_scan(__u64 now_ns)
{
	struct ksm_scan *scan = (void *)&ksm_scan;
	__u64 seqnr;

	if (has_tracepoints || !scan)
		return;
	seqnr = BPF_CORE_READ(scan, seqnr);
	full_scan_next = seen_switches && seqnr == seen_seqnr + 1;
	if (full_scan_next)
		full_scan_ends(now_ns);
	else if (seqnr != seen_seqnr)
		full_scan_since_ns = 0;
	seen_seqnr = seqnr;
}

/*
 * ksmd gives up its CPU. It sleeps interruptibly between batches, and there alone
 * (ksm_scan_thread()); where it waits for a lock or is pushed off, its batch goes on.
 */
static __always_inline void ksmd_stops(void)
{
	struct task_struct *ksmd = (void *)bpf_get_current_task();
	__u64 nvcsw = BPF_CORE_READ(ksmd, nvcsw);
	__u64 switches = nvcsw + BPF_CORE_READ(ksmd, nivcsw);
	/* __schedule() has brought it up to date. */
	__u64 clock = BPF_CORE_READ(ksmd, se.cfs_rq, rq, clock);
	/* It may be pushed off when it is about to sleep, and will do so when it runs again. */
	bool sleeps = task_interruptible(ksmd) && nvcsw != seen_nvcsw;
	__u64 batch_ns;

	if (seen_switches && switches != seen_switches + 1) {
		lost_switches += switches - seen_switches - 1;
		knows_batch = false;
	}
	if (knows_batch && !batch_since_ns) {
		batch_since_ns = BPF_CORE_READ(ksmd, sched_info.last_arrival);
		batch_begins_for_full_scan(batch_since_ns);
	}
	if (sleeps) {
		if (knows_batch) {
			/* It may have begun on another CPU, whose clock is another. */
			batch_ns = clock > batch_since_ns ? clock - batch_since_ns : 0;
			record(KSM_BATCH, batch_ns);
			scan_ns += batch_ns;
			batches++;
		}
		batch_ends_for_full_scan(clock);
		batch_since_ns = 0;
		knows_batch = true;
	}
	seen_nvcsw = nvcsw;
	seen_switches = switches;
	ksmd_task = (__u64)ksmd;
}

/* PERF_COUNT_SW_CONTEXT_SWITCHES of ksmd alone: the switches of others cost next to nothing. */
SEC("perf_event")
int ksmd_switch(void *ctx)
{
	ksmd_stops();
	return 0;
}

/* Not inlined: as a function's argument, the type stays in the BTF that Rust's is made from. */
static __noinline void write_sample(struct seq_file *seq, struct ksm_sample *sample)
{
	bpf_seq_write(seq, sample, sizeof(*sample));
}

static __always_inline int visit(struct seq_file *seq, struct task_struct *task)
{
	struct ksm_sample sample = {};
	struct task_struct *leader;
	struct mm_struct *mm;

	if (!task)
		return 0;
	/* A process lives on if its first thread ends before others. */
	leader = BPF_CORE_READ(task, group_leader);
	if (leader != task && BPF_CORE_READ(leader, mm))
		return 0;
	mm = BPF_CORE_READ(task, mm);
	if (!mm || !mm_mergeable(mm))
		return 0;
	sample.process.start_boottime_ns = BPF_CORE_READ(leader, start_boottime);
	sample.process.tgid = BPF_CORE_READ(leader, tgid);
	sample.mm = (__u64)mm;
	if (bpf_core_field_exists(mm->ksm_merging_pages)) {
		sample.merging_pages = BPF_CORE_READ(mm, ksm_merging_pages);
		sample.rmap_items = BPF_CORE_READ(mm, ksm_rmap_items);
	}
	sample.zero_pages = mm_zero_pages(mm);
	BPF_CORE_READ_STR_INTO(&sample.comm, leader, comm);
	write_sample(seq, &sample);
	return 0;
}

SEC("iter/task")
int samples(struct bpf_iter__task *ctx)
{
	return visit(ctx->meta->seq, ctx->task);
}

/* Of the batch that goes on: how much is not in scan_ns yet. */
__u64 going_on_ns;

static __always_inline void look_at_ksmd(void)
{
	struct task_struct *ksmd = (void *)ksmd_task;
	__u64 since_ns = batch_since_ns, clock;
	__u32 on_cpu = 0;

	going_on_ns = 0;
	if (!ksmd || !knows_batch)
		return;
	bpf_core_read(&on_cpu, bpf_core_field_size(ksmd->on_cpu), &ksmd->on_cpu);
	/* Its first stretch on a CPU. */
	if (!since_ns && on_cpu && !task_interruptible(ksmd))
		since_ns = BPF_CORE_READ(ksmd, sched_info.last_arrival);
	/* The clock is at most a tick late. */
	clock = BPF_CORE_READ(ksmd, se.cfs_rq, rq, clock);
	if (since_ns && clock > since_ns)
		going_on_ns = clock - since_ns;
}

static __always_inline void learn(void)
{
	struct mm_struct___pre_611 *old = NULL;
	struct mm_struct *mm = NULL;
	__u64 base = 0;

	item_bytes = rmap_item_bytes();
	knows_owners = bpf_core_field_exists(mm->owner);
	knows_merging_pages = bpf_core_field_exists(mm->ksm_merging_pages) &&
			      bpf_core_field_exists(mm->ksm_rmap_items);
	knows_zero_pages = bpf_core_field_exists(mm->ksm_zero_pages) ||
			   bpf_core_field_exists(old->ksm_zero_pages);
	knows_full_scans = has_tracepoints || &ksm_scan;
	if (&vmemmap_base)
		bpf_probe_read_kernel(&base, sizeof(base), &vmemmap_base);
	knows_pages = base;
}

/* Run by user space. */
SEC("raw_tp")
int look(void *ctx)
{
	look_at_ksmd();
	learn();
	return 0;
}

/* Writes to merged pages that go on, by thread. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1); /* set at load */
	__type(key, __u32);
	__type(value, struct cow_start);
} cows SEC(".maps");

#define STACK_DEPTH 64

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 1); /* set at load */
	__uint(key_size, sizeof(__u32));
	__uint(value_size, STACK_DEPTH * sizeof(__u64));
} stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1); /* set at load */
	__type(key, struct cow_key);
	__type(value, struct cow_place);
} places SEC(".maps");

/* arch/x86/include/asm/pgtable_types.h: bits 12 to 51 of an entry are the page frame's number. */
#define PTE_PFN(pte) (((pte) & ((1ULL << 52) - 1)) >> 12)
/* include/linux/page-flags.h */
#define PAGE_MAPPING_FLAGS 3
#define PAGE_MAPPING_KSM   3

/* The page of an entry that was found write-protected. Its struct page is in one big array. */
static __always_inline bool maps_ksm_page(struct vm_fault *vmf)
{
	__u64 pfn = PTE_PFN(BPF_CORE_READ(vmf, orig_pte.pte));
	__u64 base = 0;
	struct page *page;

	bpf_probe_read_kernel(&base, sizeof(base), &vmemmap_base);
	page = (void *)(base + pfn * bpf_core_type_size(struct page));
	if (page_tail(page))
		return false;
	return ((__u64)BPF_CORE_READ(page, mapping) & PAGE_MAPPING_FLAGS) == PAGE_MAPPING_KSM;
}

/*
 * do_wp_page(): every write to a page that is mapped read-only. It is static, but too big to be
 * inlined. The page is looked at before: the last to write to it frees it.
 */
static __always_inline void write_fault_begins(struct vm_fault *vmf)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct cow_start start = {};

	if (!maps_ksm_page(vmf))
		return;
	start.mm = (__u64)BPF_CORE_READ(vmf, vma, vm_mm);
	start.since_ns = bpf_ktime_get_ns();
	if (bpf_map_update_elem(&cows, &tid, &start, BPF_ANY))
		__sync_fetch_and_add(&lost_cows, 1);
}

/* include/linux/mm_types.h: VM_FAULT_ERROR, and VM_FAULT_RETRY: nothing was copied. */
#define VM_FAULT_NOT_DONE (0x1 | 0x2 | 0x10 | 0x20 | 0x40 | 0x400 | 0x800)

static __always_inline void count_place(void *ctx, struct ksm_process *process,
					struct mm_struct *mm, __u64 ns)
{
	struct cow_key key = {
		.process = *process,
		.user_stack = bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK),
		.kernel_stack = bpf_get_stackid(ctx, &stacks, 0),
	};
	struct cow_place *place, none = {};

	place = bpf_map_lookup_elem(&places, &key);
	if (!place) {
		BPF_CORE_READ_STR_INTO(&none.comm, mm, owner, group_leader, comm);
		bpf_map_update_elem(&places, &key, &none, BPF_NOEXIST);
		place = bpf_map_lookup_elem(&places, &key);
	}
	if (!place) {
		__sync_fetch_and_add(&lost_places, 1);
		return;
	}
	__sync_fetch_and_add(&place->count, 1);
	__sync_fetch_and_add(&place->ns, ns);
}

static __always_inline void write_fault_ends(void *ctx, __u32 result)
{
	__u32 tid = bpf_get_current_pid_tgid();
	struct ksm_process process = {};
	struct ksm_events *events;
	struct cow_start *start;
	struct mm_struct *mm;
	__u64 ns;

	start = bpf_map_lookup_elem(&cows, &tid);
	if (!start)
		return;
	ns = bpf_ktime_get_ns() - start->since_ns;
	mm = (void *)start->mm;
	bpf_map_delete_elem(&cows, &tid);
	if (result & VM_FAULT_NOT_DONE)
		return;
	__sync_fetch_and_add(&cow_breaks, 1);
	record_cow(ns);
	if (!by_process && !with_stacks)
		return;
	if (!owner(mm, &process)) {
		__sync_fetch_and_add(&lost_processes, 1);
		return;
	}
	if (with_stacks)
		count_place(ctx, &process, mm, ns);
	if (!by_process)
		return;
	events = events_of(&process, mm);
	if (!events) {
		__sync_fetch_and_add(&lost_processes, 1);
		return;
	}
	__sync_fetch_and_add(&events->cow_breaks, 1);
	__sync_fetch_and_add(&events->cow_ns, ns);
}

SEC("fentry/do_wp_page")
int BPF_PROG(do_wp_page_begins, struct vm_fault *vmf)
{
	write_fault_begins(vmf);
	return 0;
}

SEC("fexit/do_wp_page")
int BPF_PROG(do_wp_page_ends, struct vm_fault *vmf, __u32 result)
{
	write_fault_ends(ctx, result);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
