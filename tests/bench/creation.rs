//! `make bench`: how fast loadgen creates guests, and what memory each takes of the host, against processes that are
//! forked and do the bare ioctls that a guest cannot do without, in one run.

#[allow(dead_code, reason = "this bench uses a part of it")]
mod columns;
mod samples;
mod verdict;

use std::fs;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_userspace_memory_region};
use kvm_ioctls::Kvm;
use loadgen::{Controls, Fleet, Spec, Workload};

/// Of each kind, one after the other.
const GUESTS: u32 = 1009;
const ROUNDS: usize = 5;
/// The kernel frees what dead guests had a little later (RCU).
const SETTLED: Duration = Duration::from_secs(2);
/// No creation takes longer.
const DEADLINE: Duration = Duration::from_secs(60);
/// loadgen's rate must be so much of that of the bare ioctls, and its memory at most so much of theirs.
const LEAST_RATE: f64 = 0.8;
const MOST_MEMORY: f64 = 1.2;

const PAGE_SIZE: usize = 4096;

fn main() -> ExitCode {
    verdict::exit_code(run())
}

/// Guests a second, and KiB of each.
type Figures = [samples::Samples; 2];

/// False if loadgen is slower, or needs more, than it may.
fn run() -> Result<bool> {
    let charged = Charged::join()?;
    let mut figures = [Figures::default(), Figures::default()];
    for _ in 0..ROUNDS {
        let kinds: [fn(&Charged) -> _; 2] = [bare, by_loadgen];
        for (figures, create) in figures.iter_mut().zip(kinds) {
            sleep(SETTLED);
            for (samples, figure) in figures.iter_mut().zip(create(&charged)?) {
                samples.push(figure);
            }
        }
    }
    let medians = |i: usize| figures.each_ref().map(|figures| figures[i].median());
    let (rates, memory) = (medians(0), medians(1));
    columns::print_head(&format!("{GUESTS} guests"), &["bare", "loadgen"]);
    columns::print("created a second", &rates.map(Some));
    columns::print("  bare, odd and even rounds", &figures[0][0].halves().map(Some));
    columns::print("memory charged for each, KiB", &memory.map(Some));
    columns::print("  bare, odd and even rounds", &figures[0][1].halves().map(Some));
    let (rate, more) = (rates[1] / rates[0], memory[1] / memory[0]);
    println!("\nloadgen: {rate:.2} of the rate, {more:.2} of the memory");
    Ok(rate >= LEAST_RATE && more <= MOST_MEMORY)
}

/// Guests as `loadgen run --workload spin` makes them.
fn by_loadgen(charged: &Charged) -> Result<[f64; 2]> {
    let spec = Spec {
        vms: GUESTS,
        vcpus: 1,
        memory_bytes: 0,
        workload: Workload::Spin,
        linux: None,
        memory: None,
        mem_merge: false,
        vmm_sleep: Duration::ZERO,
        io_thread_percent: None,
        controls: Controls::default(),
    };
    let (before, start) = (charged.bytes()?, Instant::now());
    let mut fleet = Fleet::create(&spec, |_| ControlFlow::Continue(()))?;
    let figures = figures(start.elapsed(), before, charged.bytes()?);
    fleet.stop();
    fleet.finish()?;
    Ok(figures)
}

/// Processes that have a virtual machine and a vCPU each, ready for KVM_RUN, and nothing else.
fn bare(charged: &Charged) -> Result<[f64; 2]> {
    let kvm = Kvm::new().context("failed to open `/dev/kvm`")?;
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).context("no CPUID")?;
    let shared = shared_page()?;
    let (before, start) = (charged.bytes()?, Instant::now());
    let children: Vec<libc::pid_t> =
        (0..GUESTS).map(|_| fork(kvm.as_raw_fd(), &cpuid, shared)).collect();
    while shared.load(Relaxed) < GUESTS && start.elapsed() < DEADLINE {
        sleep(Duration::from_millis(1));
    }
    let figures = figures(start.elapsed(), before, charged.bytes()?);
    let ready = shared.load(Relaxed);
    for pid in &children {
        // SAFETY: kill has no memory to go wrong with; the children have not been waited for.
        unsafe { libc::kill(*pid, libc::SIGKILL) };
    }
    for pid in children {
        // SAFETY: waitpid takes no status here.
        unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
    }
    // SAFETY: the page was mapped by `shared_page`, and nobody else is left that uses it.
    unsafe { libc::munmap(shared.as_ptr().cast(), PAGE_SIZE) };
    ensure!(ready == GUESTS, "{ready} of {GUESTS} bare guests were created");
    Ok(figures)
}

fn fork(kvm: RawFd, cpuid: &CpuId, shared: &AtomicU32) -> libc::pid_t {
    // SAFETY: this process has one thread, so no lock is held by somebody who does not exist in the child.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: PR_SET_PDEATHSIG takes a signal number.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        // Who fails does not come, and is missed.
        let made = live(kvm, cpuid, shared);
        // SAFETY: _exit has no preconditions.
        unsafe { libc::_exit(i32::from(made.is_err())) }
    }
    pid
}

fn live(kvm: RawFd, cpuid: &CpuId, shared: &AtomicU32) -> Result<()> {
    // SAFETY: inherited, open, and used by nobody else in this process.
    let kvm = unsafe { Kvm::from_raw_fd(kvm) };
    let vm = kvm.create_vm()?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: PAGE_SIZE as u64,
        userspace_addr: shared.as_ptr().addr() as u64,
    };
    // SAFETY: the mapping lives as long as this process.
    unsafe { vm.set_user_memory_region(region) }?;
    let vcpu = vm.create_vcpu(0)?;
    vcpu.set_cpuid2(cpuid)?;
    vcpu.set_sregs(&vcpu.get_sregs()?)?;
    vcpu.set_regs(&vcpu.get_regs()?)?;
    shared.fetch_add(1, Relaxed);
    loop {
        // SAFETY: pause has no preconditions.
        unsafe { libc::pause() };
    }
}

/// A page that children share with this process.
fn shared_page() -> Result<&'static AtomicU32> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping where the kernel likes changes no memory that is in use.
    let page = unsafe { libc::mmap(ptr::null_mut(), PAGE_SIZE, protection, flags, -1, 0) };
    if page == libc::MAP_FAILED {
        bail!("failed to map a page: {}", std::io::Error::last_os_error());
    }
    // SAFETY: mapped, zeroed, aligned; unmapped by `bare` when its children are gone.
    Ok(unsafe { AtomicU32::from_ptr(page.cast()) })
}

fn figures(time: Duration, before: u64, after: u64) -> [f64; 2] {
    let kib = (after as f64 - before as f64) / 1024.0;
    [f64::from(GUESTS) / time.as_secs_f64(), kib / f64::from(GUESTS)]
}

/// A memory cgroup that this process is in, with all that it forks: what is charged there is independent of whatever else
/// the host does meanwhile.
struct Charged {
    dir: PathBuf,
    usage: &'static str,
}

impl Charged {
    /// Of v1, or of v2.
    fn join() -> Result<Self> {
        let name = format!("bench-{}", std::process::id());
        let make = |root: &str, usage| -> Option<Self> {
            let charged = Self { dir: Path::new(root).join(&name), usage };
            fs::create_dir(&charged.dir).ok()?;
            charged.dir.join(usage).exists().then_some(charged)
        };
        let charged = make("/sys/fs/cgroup/memory", "memory.usage_in_bytes")
            .or_else(|| make("/sys/fs/cgroup", "memory.current"))
            .context("no memory cgroup can be made: the bench needs root")?;
        fs::write(charged.dir.join("cgroup.procs"), "0").context("failed to join it")?;
        Ok(charged)
    }

    fn bytes(&self) -> Result<u64> {
        let path = self.dir.join(self.usage);
        let text = fs::read_to_string(&path)
            .with_context(|| format!("failed to read `{}`", path.display()))?;
        text.trim().parse().with_context(|| format!("`{}` is no number", path.display()))
    }
}

impl Drop for Charged {
    fn drop(&mut self) {
        _ = fs::write(self.dir.join("../cgroup.procs"), "0");
        _ = fs::remove_dir(&self.dir);
    }
}
