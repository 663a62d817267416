//! Threads that sleep until they are let go, do something, and sleep again, so that the kernel's books of each can
//! be read while they stand still.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::run_delay_ns;

/// A gate that many threads sleep at and that lets all go at once: a futex, so that each is woken just once.
#[derive(Default)]
pub struct Gate(AtomicU32);

impl Gate {
    pub fn pass(&self) {
        while self.0.load(Ordering::Acquire) == 0 {
            // SAFETY: the futex word lives as long as this reference; a null timeout means none.
            unsafe {
                let word = self.0.as_ptr();
                libc::syscall(
                    libc::SYS_futex,
                    word,
                    libc::FUTEX_WAIT,
                    0,
                    ptr::null::<libc::timespec>(),
                );
            }
        }
    }

    pub fn open(&self) {
        self.0.store(1, Ordering::Release);
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_futex, self.0.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
    }
}

/// Threads asleep before or after their work.
pub struct Threads {
    pub tids: Vec<i32>,
    begin: Arc<Gate>,
    end: Arc<Gate>,
    done: Arc<AtomicU32>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Creates `n` threads and returns when all sleep.
    pub fn asleep(n: usize, work: impl Fn(usize) + Send + Sync + 'static) -> Self {
        let (work, begin, end) =
            (Arc::new(work), Arc::new(Gate::default()), Arc::new(Gate::default()));
        let done = Arc::new(AtomicU32::new(0));
        let (sender, receiver) = mpsc::channel();
        let handles = (0..n).map(|i| {
            let (work, begin, end) = (Arc::clone(&work), Arc::clone(&begin), Arc::clone(&end));
            let (done, sender) = (Arc::clone(&done), sender.clone());
            let body = move || {
                // SAFETY: a plain system call.
                sender.send(unsafe { libc::gettid() }).unwrap();
                begin.pass();
                work(i);
                done.fetch_add(1, Ordering::AcqRel);
                end.pass();
            };
            Builder::new().stack_size(65_536).spawn(body).unwrap()
        });
        let handles = handles.collect();
        let mut tids: Vec<i32> = receiver.into_iter().take(n).collect();
        tids.sort_unstable();
        let threads = Self { tids, begin, end, done, handles };
        threads.wait_until_asleep();
        threads
    }

    /// Lets all threads go at once.
    pub fn go(&self) {
        self.begin.open();
    }

    /// Waits until all have done their work and sleep again.
    pub fn finish(&self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        while (self.done.load(Ordering::Acquire) as usize) < self.tids.len() {
            assert!(Instant::now() < deadline, "the threads do not finish");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.wait_until_asleep();
    }

    /// What the kernel's books say of each thread, in the order of `tids`.
    pub fn run_delays_ns(&self) -> Vec<u64> {
        self.tids.iter().map(|&tid| run_delay_ns(std::process::id(), tid)).collect()
    }

    fn wait_until_asleep(&self) {
        let deadline = Instant::now() + Duration::from_secs(120);
        for tid in &self.tids {
            let stat = format!("/proc/self/task/{tid}/stat");
            while !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
                assert!(Instant::now() < deadline, "thread {tid} does not sleep");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.begin.open();
        self.end.open();
        for handle in self.handles.drain(..) {
            drop(handle.join());
        }
    }
}

/// Binds the calling thread to a CPU.
pub fn pin(cpu: usize) {
    pin_thread(0, cpu);
}

/// Binds a thread to a CPU; 0 is the calling one.
pub fn pin_thread(tid: i32, cpu: usize) {
    // SAFETY: an all-zero cpu_set_t is an empty set, and it outlives the call.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        assert_eq!(libc::sched_setaffinity(tid, size_of_val(&set), &set), 0);
    }
}

/// Gives the calling thread a real-time priority; 0 is an ordinary thread's.
pub fn set_fifo(priority: i32) {
    let policy = if priority == 0 { libc::SCHED_OTHER } else { libc::SCHED_FIFO };
    let param = libc::sched_param { sched_priority: priority };
    // SAFETY: `param` outlives the call.
    assert_eq!(unsafe { libc::sched_setscheduler(0, policy, &param) }, 0, "SCHED_FIFO needs root");
}

/// Burns CPU for so much time on the wall.
pub fn burn(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}
