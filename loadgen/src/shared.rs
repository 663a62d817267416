//! The memory that parent and guests share: a page of control, the image, and every vCPU's page. One anonymous
//! mapping made before forking: what a guest has counted is there however it ended.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::image::{self, IMAGE_SIZE};
use crate::numa::Node;
use crate::record::{PAGE_SIZE, VcpuPage};
use crate::workload::Workload;

/// What a guest is told that waits at a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Go on.
    GoOn,
    /// Leave without having run.
    Leave,
}

/// What concerns all guests.
#[repr(C)]
pub(crate) struct Control {
    /// Who shall sleep once more, now in the cgroup.
    pub(crate) rest: Gate,
    /// Who may run.
    pub(crate) run: Gate,
    /// Threads of guests that are there.
    pub(crate) settled: Tally,
    /// Threads of guests that are about to sleep once more.
    pub(crate) rested: Tally,
}

/// How many of the guests, in the order of their numbers, may go on; or [`LEAVE`]. A futex.
#[repr(transparent)]
pub(crate) struct Gate(AtomicU32);

/// For a [`Gate`]: those that wait at it shall leave.
const LEAVE: u32 = u32::MAX;

/// How many have come, and how many of them the parent waits for; the first is a futex.
#[repr(C)]
pub(crate) struct Tally {
    come: AtomicU32,
    awaited: AtomicU32,
}

/// The mapping. It is inherited by every guest, which never unmaps it.
pub(crate) struct Shared {
    memory: NonNull<u8>,
    size: usize,
}

// SAFETY: what the mapping gives out are references to atomics, and the image, which is not written after `new`.
unsafe impl Sync for Shared {}

impl Shared {
    /// Maps memory for `pages` vCPUs with this workload, on a NUMA node if there is one to be bound to; what is never
    /// touched costs nothing.
    pub(crate) fn new(pages: usize, workload: Workload, node: Option<Node>) -> io::Result<Self> {
        let size = PAGE_SIZE + IMAGE_SIZE + pages * PAGE_SIZE;
        let memory = map(size, libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)?;
        let shared = Self { memory, size };
        node.map_or(Ok(()), |node| node.bind_mapping(memory, size))?;
        // SAFETY: these pages have just been mapped, and only this process knows them.
        unsafe { image::write(shared.image(), workload) };
        Ok(shared)
    }

    /// What concerns all guests.
    pub(crate) fn control(&self) -> &Control {
        // SAFETY: the first page is big enough, aligned and zeroed, and `Control` has only atomics.
        unsafe { self.memory.cast().as_ref() }
    }

    /// The image: [`IMAGE_SIZE`] bytes.
    pub(crate) fn image(&self) -> *mut u8 {
        // SAFETY: the image is inside the mapping.
        unsafe { self.memory.as_ptr().add(PAGE_SIZE) }
    }

    /// The page of a vCPU; those of one guest are adjacent.
    pub(crate) fn page(&self, index: usize) -> &VcpuPage {
        // SAFETY: mapped, aligned, zeroed at first; it has only atomics.
        unsafe { self.page_at(index).as_ref() }
    }

    /// Makes the page of a vCPU what it was at first, for another guest: nobody runs on it any more.
    pub(crate) fn clear_page(&mut self, index: usize) {
        // SAFETY: a whole page of the mapping. References to it in this process cannot outlive the borrow of self, the
        // guest that had it is gone, and a page of zeroes is a valid record.
        unsafe { self.page_at(index).write_bytes(0, 1) };
    }

    fn page_at(&self, index: usize) -> NonNull<VcpuPage> {
        let offset = PAGE_SIZE + IMAGE_SIZE + index * PAGE_SIZE;
        assert!(offset < self.size, "vCPU index out of range");
        // SAFETY: inside the mapping as just asserted.
        unsafe { self.memory.add(offset).cast() }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: this is the mapping made in `new`; references to it cannot outlive self.
        unsafe { libc::munmap(self.memory.as_ptr().cast(), self.size) };
    }
}

/// A new mapping, readable and writable.
pub(crate) fn map(size: usize, flags: i32) -> io::Result<NonNull<u8>> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping where the kernel likes changes no memory that is in use.
    let memory = unsafe { libc::mmap(ptr::null_mut(), size, protection, flags, -1, 0) };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(memory.cast()).ok_or_else(io::Error::last_os_error)
}

/// Sees to it that a mapping made with [`map`] gets its memory in pages of 4 KiB only, one fault each.
pub(crate) fn forbid_huge_pages(memory: NonNull<u8>, size: usize) -> io::Result<()> {
    // SAFETY: advice on a mapping that exists changes nothing in it.
    match unsafe { libc::madvise(memory.as_ptr().cast(), size, libc::MADV_NOHUGEPAGE) } {
        0 => Ok(()),
        // EINVAL: this kernel has no huge pages.
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            e => Err(e),
        },
    }
}

/// Lets KSM merge the pages of a mapping made with [`map`]: what QEMU does with its guests' memory unless it is told
/// `mem-merge=off`.
pub(crate) fn allow_merging(memory: NonNull<u8>, size: usize) -> io::Result<()> {
    // SAFETY: advice on a mapping that exists; merged or not, it reads the same.
    match unsafe { libc::madvise(memory.as_ptr().cast(), size, libc::MADV_MERGEABLE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Maps two parts of a shared mapping a second time, one right after the other; sizes in bytes, whole pages.
pub(crate) fn map_side_by_side(parts: [(*mut u8, usize); 2]) -> io::Result<NonNull<u8>> {
    let size = parts.iter().map(|(_, size)| size).sum();
    let whole = map(size, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE)?;
    let mut offset = 0;
    for (part, size) in parts {
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: the target is inside the mapping just made, which nobody uses yet. An old size of 0 leaves the
        // source where it is: a shared mapping is mapped once more.
        let mapped = unsafe {
            let target = whole.as_ptr().add(offset);
            libc::mremap(part.cast(), 0, size, flags, target)
        };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        offset += size;
    }
    Ok(whole)
}

impl Control {
    /// The parent: lets the first `guests` run.
    pub(crate) fn let_pass(&self, guests: u32) {
        self.rest.open_for(guests);
        self.run.open_for(guests);
    }

    /// The parent: tells all guests that wait to leave; of no effect on those that run.
    pub(crate) fn leave(&self) {
        self.let_pass(LEAVE);
    }
}

impl Gate {
    /// The parent: lets the first `guests` go on.
    pub(crate) fn open_for(&self, guests: u32) {
        self.0.store(guests, Ordering::Release);
        futex_wake(&self.0);
    }

    /// A thread of the guest with this number: waits until it may go on or is to leave.
    pub(crate) fn wait(&self, number: u32) -> Order {
        loop {
            match self.0.load(Ordering::Acquire) {
                LEAVE => return Order::Leave,
                guests if number < guests => return Order::GoOn,
                guests => futex_wait(&self.0, guests, None),
            }
        }
    }
}

impl Tally {
    /// One more has come; the last of those awaited wakes the parent.
    pub(crate) fn come(&self) {
        let come = self.come.fetch_add(1, Ordering::AcqRel) + 1;
        if come == self.awaited.load(Ordering::Acquire) {
            futex_wake(&self.come);
        }
    }

    /// The parent: whether so many have come. Waits up to `timeout` if not.
    pub(crate) fn wait(&self, awaited: u32, timeout: Duration) -> bool {
        self.awaited.store(awaited, Ordering::Release);
        let come = self.come.load(Ordering::Acquire);
        if come < awaited {
            futex_wait(&self.come, come, Some(timeout));
        }
        self.come.load(Ordering::Acquire) >= awaited
    }
}

/// Sleeps while the word is `expected`; may return for no reason at all.
fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    let timeout = timeout.map(|t| libc::timespec {
        tv_sec: t.as_secs().cast_signed(),
        tv_nsec: t.subsec_nanos().into(),
    });
    let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
    // SAFETY: the word is in shared memory that stays mapped; the timeout is null or valid.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, timeout) };
}

/// Wakes everybody who sleeps on the word, in whichever process.
fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word is in shared memory that stays mapped.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}
