/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Log-linear histograms in nanoseconds: octaves (powers of two) of 32 linear slots each. An octave
 * is the unit of storage, so that a histogram held in a hash map costs only the octaves it has.
 * Counts and sums only ever grow; user space prints differences between two reads.
 */
#ifndef __HIST_BPF_H
#define __HIST_BPF_H

#include "vmlinux.h"
#include <bpf/bpf_helpers.h>

#define HIST_SLOT_BITS 5
#define HIST_SLOTS     (1 << HIST_SLOT_BITS)
/* Octave 0 is linear, [0, 32); octave n is [2^(n+4), 2^(n+5)), up to 2^64. */
#define HIST_OCTAVES (64 - HIST_SLOT_BITS + 1)

/* Extremes carry the epoch (interval) they belong to above 48 bits of nanoseconds: three days. */
#define HIST_EPOCH_SHIFT 48
#define HIST_EXTREME_MAX ((1ULL << HIST_EPOCH_SHIFT) - 1)

struct hist_octave {
	__u64 slots[HIST_SLOTS];
	__u64 sum_ns;
	/*
	 * The extremes of an interval cannot be had from those of two reads, so they start anew
	 * with each epoch. There are two: that of the epoch just ended stays while it is read.
	 */
	__u64 highest[2];
	__u64 lowest[2];
	/*
	 * No slot ends at 1000 * 2^k ns or 1000000 * 2^k ns, where the familiar pictures in
	 * microseconds and milliseconds part. Each octave has just one of either: how many values
	 * lie at or above it makes those pictures exact.
	 */
	__u64 above_us;
	__u64 above_ms;
};

/* The number of the interval, never 0; advanced by user space before it reads. */
volatile __u16 epoch;

static __always_inline __u32 log2_u64(__u64 v)
{
	__u32 shift, log2;

	log2 = (v > 0xffffffff) << 5;
	v >>= log2;
	shift = (v > 0xffff) << 4;
	v >>= shift;
	log2 |= shift;
	shift = (v > 0xff) << 3;
	v >>= shift;
	log2 |= shift;
	shift = (v > 0xf) << 2;
	v >>= shift;
	log2 |= shift;
	shift = (v > 0x3) << 1;
	v >>= shift;
	log2 |= shift;
	return log2 | v >> 1;
}

static __always_inline __u32 hist_octave_of(__u64 ns)
{
	return ns < HIST_SLOTS ? 0 : log2_u64(ns) - HIST_SLOT_BITS + 1;
}

static __always_inline __u32 hist_slot_of(__u64 ns, __u32 octave)
{
	return (octave ? ns >> (octave - 1) : ns) & (HIST_SLOTS - 1);
}

/* The octaves' lower ends are 2^9 < 1000 and 2^19 < 1000000, the largest powers of two below. */
static __always_inline bool hist_above(__u64 ns, __u32 octave, __u64 unit_ns, __u32 unit_log2)
{
	__u32 first = unit_log2 - HIST_SLOT_BITS + 1;

	return octave >= first && ns >= unit_ns << ((octave - first) & 63);
}

static __always_inline __u64 hist_extreme(__u64 ns, __u32 epoch)
{
	return (__u64)epoch << HIST_EPOCH_SHIFT | (ns < HIST_EXTREME_MAX ? ns : HIST_EXTREME_MAX);
}

/* Is @new an extreme that has to replace @old: of a later epoch, or further out in the same? */
static __always_inline bool hist_replaces(__u64 new, __u64 old, bool highest)
{
	if ((new ^ old) >> HIST_EPOCH_SHIFT)
		return true;
	return highest ? new > old : new < old;
}

/* Records @n values of @ns each, @sum_ns in all, where only this CPU writes, interrupts off. */
static __always_inline void hist_record(struct hist_octave *o, __u32 octave, __u64 ns, __u64 n,
					__u64 sum_ns)
{
	__u32 now = epoch;
	__u64 extreme = hist_extreme(ns, now);

	o->slots[hist_slot_of(ns, octave)] += n;
	o->sum_ns += sum_ns;
	if (hist_above(ns, octave, 1000, 9))
		o->above_us += n;
	if (hist_above(ns, octave, 1000000, 19))
		o->above_ms += n;
	if (hist_replaces(extreme, o->highest[now & 1], true))
		o->highest[now & 1] = extreme;
	if (hist_replaces(extreme, o->lowest[now & 1], false))
		o->lowest[now & 1] = extreme;
}

/* More CPUs than this racing for one extreme at one moment is not a case; the loop must end. */
#define HIST_RACES 16

/* A global function: the verifier goes through the loop once, not once for every caller's state. */
__noinline int hist_race(__u64 *where, __u64 extreme, __u32 highest)
{
	__u64 old, seen;
	int i;

	if (!where)
		return 0;
	seen = *(volatile __u64 *)where;
	for (i = 0; i < HIST_RACES && hist_replaces(extreme, seen, highest); i++) {
		old = seen;
		seen = __sync_val_compare_and_swap(where, old, extreme);
		if (seen == old)
			break;
	}
	return 0;
}

/* The same where several CPUs write; global, too. */
__noinline int hist_record_shared(struct hist_octave *o, __u32 octave, __u64 ns, __u64 n,
				  __u64 sum_ns)
{
	__u32 now = epoch;
	__u64 extreme = hist_extreme(ns, now);

	if (!o)
		return 0;
	__sync_fetch_and_add(&o->slots[hist_slot_of(ns, octave)], n);
	__sync_fetch_and_add(&o->sum_ns, sum_ns);
	if (hist_above(ns, octave, 1000, 9))
		__sync_fetch_and_add(&o->above_us, n);
	if (hist_above(ns, octave, 1000000, 19))
		__sync_fetch_and_add(&o->above_ms, n);
	hist_race(&o->highest[now & 1], extreme, true);
	hist_race(&o->lowest[now & 1], extreme, false);
	return 0;
}

#endif /* __HIST_BPF_H */
