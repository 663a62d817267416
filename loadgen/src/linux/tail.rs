//! The end of each guest's console, in memory shared with the parent: what a guest wrote last is there however it ended.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::Relaxed};

use crate::shared;

/// How much is kept: more than a panic with its registers and call trace.
const KEPT_BYTES: usize = 8184;
/// How many lines of it are told.
const TOLD_LINES: usize = 8;
/// What the kernel begins its last words with.
const PANIC: &str = "Kernel panic";

/// The last bytes of one console: a ring.
#[repr(C)]
pub(super) struct Tail {
    /// All that there have been.
    written: AtomicUsize,
    ring: [AtomicU8; KEPT_BYTES],
}

impl Tail {
    /// The guest: one byte more.
    pub(super) fn push(&self, byte: u8) {
        let written = self.written.load(Relaxed);
        self.ring[written % KEPT_BYTES].store(byte, Relaxed);
        self.written.store(written + 1, Relaxed);
    }

    /// The parent: what there is, as text.
    pub(super) fn text(&self) -> String {
        let written = self.written.load(Relaxed);
        let kept = written.saturating_sub(KEPT_BYTES)..written;
        let bytes: Vec<u8> = kept.map(|at| self.ring[at % KEPT_BYTES].load(Relaxed)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// The lines to tell: the last ones, or some from the last panic on if more follow, without what a terminal would take
/// for a command.
pub(super) fn last_lines(console: &str) -> Vec<String> {
    let lines = console.lines().map(|line| line.chars().filter(|c| !c.is_control()).collect());
    let lines: Vec<String> = lines.filter(|line: &String| !line.trim().is_empty()).collect();
    let last = lines.len().saturating_sub(TOLD_LINES);
    let panic = lines.iter().rposition(|line| line.contains(PANIC));
    let from = panic.map_or(last, |panic| panic.min(last));
    lines.into_iter().skip(from).take(TOLD_LINES).collect()
}

/// Those of the guests in all places: a mapping that is made before forking, and that guests never unmap.
pub(super) struct Tails {
    memory: NonNull<u8>,
    places: u32,
}

// SAFETY: what the mapping gives out are references to atomics.
unsafe impl Sync for Tails {}

impl Tails {
    /// What is never written to costs nothing.
    pub(super) fn new(places: u32) -> io::Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let memory = shared::map(places as usize * size_of::<Tail>(), flags)?;
        Ok(Self { memory, places })
    }

    /// The guest in this place, which may have had another one before: a console with nothing on it.
    pub(super) fn begin(&self, place: u32) -> &Tail {
        let tail = self.of(place);
        tail.written.store(0, Relaxed);
        tail
    }

    /// That in this place, counted from 0.
    pub(super) fn of(&self, place: u32) -> &Tail {
        assert!(place < self.places, "place out of range");
        // SAFETY: inside the mapping as just asserted, aligned as it begins at a page, zeroed at first; it has only
        // atomics.
        unsafe { self.memory.cast::<Tail>().add(place as usize).as_ref() }
    }
}

impl Drop for Tails {
    fn drop(&mut self) {
        let bytes = self.places as usize * size_of::<Tail>();
        // SAFETY: this is the mapping made in `new`; references to it cannot outlive self.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_kept_whatever_came_before() {
        let tails = Tails::new(2).expect("memory");
        let (one, other) = (tails.of(0), tails.of(1));
        for number in 0..10_007 {
            format!("line {number}\r\n").bytes().for_each(|byte| one.push(byte));
        }
        other.push(b'x');
        tails.begin(1).push(b'y');
        let text = one.text();
        assert_eq!(text.len(), KEPT_BYTES);
        assert!(text.ends_with("line 10005\r\nline 10006\r\n"), "{text}");
        assert_eq!(last_lines(&text)[7], "line 10006");
        assert_eq!(other.text(), "y");
    }

    #[test]
    fn a_panic_is_told_from_its_first_line() {
        let trace: String = (0..23).map(|number| format!("[ 0.5]  trace {number}\r\n")).collect();
        let console = format!("before\n\n[ 0.5] Kernel panic - not syncing: \x1b[1mwhy\r\n{trace}");
        let lines = last_lines(&console);
        assert_eq!(lines.len(), TOLD_LINES);
        assert_eq!(lines[..2], ["[ 0.5] Kernel panic - not syncing: [1mwhy", "[ 0.5]  trace 0"]);
        let short = last_lines("why\r\n[ 0.5] Kernel panic\r\nlast");
        assert_eq!(short, ["why", "[ 0.5] Kernel panic", "last"]);
        assert_eq!(last_lines("one\r\n\r\ntwo: "), ["one", "two: "]);
        assert!(last_lines("\r\n").is_empty());
    }
}
