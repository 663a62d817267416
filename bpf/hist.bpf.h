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

/*
 * Extremes carry the epoch (interval) they belong to above 44 bits of nanoseconds, five hours: the
 * greater number is of a later epoch or, in the same, further out. The lowest is kept as its
 * distance from those 44 bits' end.
 */
#define HIST_EPOCH_SHIFT 44
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
volatile __u32 epoch;

/*
 * No branches from here to hist_record(): a comparison is one in BPF, after which the verifier
 * follows both ways with all that comes after, 60 times for 60 octaves. That would be most of a
 * tool's start-up.
 */

/* 1 if @v is not 0, else 0. @v is below 2^63; that it is must be kept from the compiler. */
static __always_inline __u64 hist_nonzero(__u64 v)
{
	barrier_var(v);
	return (0 - v) >> 63;
}

static __always_inline __u64 log2_u64(__u64 v)
{
	__u64 shift, log2;

	log2 = hist_nonzero(v >> 32) << 5;
	v >>= log2;
	shift = hist_nonzero(v >> 16) << 4;
	v >>= shift;
	log2 |= shift;
	shift = hist_nonzero(v >> 8) << 3;
	v >>= shift;
	log2 |= shift;
	shift = hist_nonzero(v >> 4) << 2;
	v >>= shift;
	log2 |= shift;
	shift = hist_nonzero(v >> 2) << 1;
	v >>= shift;
	log2 |= shift;
	return log2 | v >> 1;
}

static __always_inline __u32 hist_octave_of(__u64 ns)
{
	return log2_u64(ns | (HIST_SLOTS - 1)) - HIST_SLOT_BITS + 1;
}

static __always_inline __u32 hist_slot_of(__u64 ns, __u32 octave)
{
	return (ns >> (octave - hist_nonzero(octave))) & (HIST_SLOTS - 1);
}

/*
 * 1 if @ns, below 2^63, is at or above @unit_ns * 2^k in its octave. The largest power of two below
 * the unit is 2^9 < 1000 or 2^19 < 1000000; before that octave there is nothing above.
 */
static __always_inline __u64 hist_above(__u64 ns, __u64 octave, __u64 unit_ns, __u64 unit_log2)
{
	__u64 first = unit_log2 - HIST_SLOT_BITS + 1;
	__u64 below = ns - (unit_ns << ((octave - first) & 63));

	barrier_var(below);
	return ~(below | (octave - first)) >> 63;
}

static __always_inline __u64 hist_highest(__u64 ns, __u64 epoch)
{
	ns |= 0 - hist_nonzero(ns >> HIST_EPOCH_SHIFT);
	return epoch << HIST_EPOCH_SHIFT | (ns & HIST_EXTREME_MAX);
}

static __always_inline __u64 hist_lowest(__u64 ns, __u64 epoch)
{
	return hist_highest(ns, epoch) ^ HIST_EXTREME_MAX;
}

/* Records @n values of @ns each, @sum_ns in all, where only this CPU writes, interrupts off. */
static __always_inline void hist_record(struct hist_octave *o, __u32 octave, __u64 ns, __u64 n,
					__u64 sum_ns)
{
	__u32 now = epoch;
	__u64 highest = hist_highest(ns, now), lowest = hist_lowest(ns, now);

	o->slots[hist_slot_of(ns, octave)] += n;
	o->sum_ns += sum_ns;
	o->above_us += n * hist_above(ns, octave, 1000, 9);
	o->above_ms += n * hist_above(ns, octave, 1000000, 19);
	if (highest > o->highest[now & 1])
		o->highest[now & 1] = highest;
	if (lowest > o->lowest[now & 1])
		o->lowest[now & 1] = lowest;
}

/* More CPUs than this racing for one extreme at one moment is not a case; the loop must end. */
#define HIST_RACES 16

/* A global function: the verifier goes through the loop once, not once for every caller's state. */
__noinline int hist_race(__u64 *where, __u64 extreme)
{
	__u64 old, seen;
	int i;

	if (!where)
		return 0;
	seen = *(volatile __u64 *)where;
	for (i = 0; i < HIST_RACES && extreme > seen; i++) {
		old = seen;
		seen = __sync_val_compare_and_swap(where, old, extreme);
		if (seen == old)
			break;
	}
	return 0;
}

/*
 * The same where several CPUs write. Linux before 5.12 (5ffa25502b5a, "bpf: Add instructions for
 * atomic_[cmp]xchg") refuses every program that has an exchange: without it, of two extremes at one
 * moment either may stay. User space keeps it within what the slots say.
 */
static __always_inline void hist_record_shared(struct hist_octave *o, __u32 octave, __u64 ns,
					       __u64 n, __u64 sum_ns, bool exchange)
{
	__u32 now = epoch;
	__u64 highest = hist_highest(ns, now), lowest = hist_lowest(ns, now);

	__sync_fetch_and_add(&o->slots[hist_slot_of(ns, octave)], n);
	__sync_fetch_and_add(&o->sum_ns, sum_ns);
	__sync_fetch_and_add(&o->above_us, n * hist_above(ns, octave, 1000, 9));
	__sync_fetch_and_add(&o->above_ms, n * hist_above(ns, octave, 1000000, 19));
	if (exchange) {
		hist_race(&o->highest[now & 1], highest);
		hist_race(&o->lowest[now & 1], lowest);
		return;
	}
	if (highest > o->highest[now & 1])
		o->highest[now & 1] = highest;
	if (lowest > o->lowest[now & 1])
		o->lowest[now & 1] = lowest;
}

#endif /* __HIST_BPF_H */
