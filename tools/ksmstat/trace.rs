//! ksmstat's BPF programs: opened, told what to do, loaded, attached, and read.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd as _, IntoRawFd as _};
use std::time::Instant;

use anyhow::{Context as _, Result};
use common::hist::{FIRST_EPOCH, Octave, next_epoch};
use common::maps::{copy_out, read_all};
use common::output::Interval;
use common::tracepoints::{self, Found, Record};
use common::{host, progs};
use jiff::Timestamp;
use libbpf_rs::skel::{OpenSkel as _, Skel as _, SkelBuilder as _};
use libbpf_rs::{Iter, Link, MapCore as _, MapFlags, MapType, OpenObject, ProgramInput};
use plain::Plain;

use crate::ksmd;
use crate::pages::Pages;
use crate::processes::{Events, ProcessId, Sample};
use crate::rows::{Advice, Elements, Known, Losses, Reading, Totals};
use crate::stacks::Place;
use crate::sysfs::State;

common::skeleton!("ksmstat");
use skel::{KsmstatSkel, KsmstatSkelBuilder, OpenKsmstatSkel, types};

// SAFETY: repr(C), integers only, generated from bpf/ksmstat.h; any bytes are valid.
unsafe impl Plain for types::ksm_sample {}
// SAFETY: as above.
unsafe impl Plain for types::ksm_process {}
// SAFETY: as above.
unsafe impl Plain for types::ksm_events {}
// SAFETY: as above.
unsafe impl Plain for types::hist_octave {}
// SAFETY: as above.
unsafe impl Plain for types::cow_key {}
// SAFETY: as above.
unsafe impl Plain for types::cow_place {}

/// What the programs are to watch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Processes with mergeable memory.
    pub processes: bool,
    /// Writes to merged pages.
    pub cow: bool,
    /// Where those came from.
    pub stacks: bool,
}

/// KSM's tracepoints that are watched (Linux 6.3 and later), and what we read of their records.
const TRACEPOINTS: [Record; 5] = [
    ("ksm_merge_with_ksm_page", &[("mm", 32), ("err", 40)]),
    ("ksm_merge_one_page", &[("mm", 24), ("err", 32)]),
    ("ksm_start_scan", &[]),
    ("ksm_stop_scan", &[]),
    // Linux 6.8
    ("ksm_advisor", &[("scan_time", 8), ("pages_to_scan", 16), ("cpu_percent", 24)]),
];
/// The most processes there is room for; a bucket of an empty table is 16 bytes.
const MAX_PROCESSES: u64 = 1 << 20;
/// The same where all elements must exist from the start.
const MAX_PREALLOCATED: u64 = 65_536;
/// Room for writes to merged pages that go on at once, for stacks, and for processes at each.
const COWS: u32 = 16_384;
const STACKS: u32 = 16_384;
const PLACES: u32 = 65_536;
/// `HIST_OCTAVES` in bpf/hist.bpf.h.
const OCTAVES: u32 = 60;

/// The attached programs.
pub struct Tracer<'obj> {
    skel: KsmstatSkel<'obj>,
    samples: Option<Link>,
    _links: Vec<Link>,
    ksmd: Option<i32>,
    /// Where the kernel does not count processes' merged pages.
    pages: Option<Pages>,
    known: Known,
    epoch: u32,
    interval_start: Instant,
}

impl<'obj> Tracer<'obj> {
    /// Loads and attaches the programs. The interval starts here.
    pub fn start(wanted: Wanted, object: &'obj mut MaybeUninit<OpenObject>) -> Result<Self> {
        let found = find_tracepoints()?;
        let refused = match wanted.cow {
            true => refuses_probes()?,
            false => None,
        };
        let wanted = Wanted { cow: wanted.cow && refused.is_none(), ..wanted };
        let mut open = open(object)?;
        choose_programs(&mut open, wanted, found);
        set_up(&mut open, wanted, found)?;
        let skel = open.load().map_err(host::explain_load_error)?;
        let ksmd = ksmd::find();
        let mut tracer = Self {
            skel,
            samples: None,
            _links: Vec::new(),
            ksmd,
            pages: None,
            known: Known::default(),
            epoch: FIRST_EPOCH,
            interval_start: Instant::now(),
        };
        tracer.attach(wanted, found)?;
        tracer.look()?;
        if wanted.processes && !tracer.bss()?.knows_merging_pages {
            tracer.pages = Pages::open(crate::page_bytes());
        }
        tracer.known = tracer.known(wanted, found, refused)?;
        tracer.interval_start = Instant::now();
        Ok(tracer)
    }

    /// What can be known on this kernel.
    pub fn what_is_known(&self) -> &Known {
        &self.known
    }

    /// Ends the interval and reads what it found.
    pub fn read(&mut self) -> Result<(Interval, Reading)> {
        let epoch = self.epoch;
        self.epoch = next_epoch(epoch);
        self.skel.maps.bss_data.as_deref_mut().context("failed to map the variables")?.epoch =
            self.epoch;
        let (now, end) = (Instant::now(), Timestamp::now());
        let interval = Interval { end, length: now.duration_since(self.interval_start) };
        self.interval_start = now;
        Ok((interval, self.reading(epoch)?))
    }

    /// What there is now, for differences.
    pub fn reading(&self, epoch: u32) -> Result<Reading> {
        self.look()?;
        Ok(Reading {
            epoch,
            // In this order: the kernel counts writes to merged pages before we do, and merges after.
            cow_ksm: ksmd::cow_breaks()?,
            totals: self.totals()?,
            state: State::read()?,
            ksmd_cpu_ns: self.ksmd.and_then(ksmd::cpu_time_ns),
            elements: self.elements()?,
        })
    }

    /// Processes with mergeable memory.
    pub fn samples(&self) -> Result<Vec<Sample>> {
        let Some(samples) = &self.samples else {
            return Ok(Vec::new());
        };
        let mut bytes = Vec::new();
        Iter::new(samples)
            .context("failed to start the task iterator")?
            .read_to_end(&mut bytes)
            .context("failed to read the task iterator")?;
        let records = bytes.chunks(size_of::<types::ksm_sample>());
        let samples = records.map(|record| Ok(sample(&copy_out(record)?)));
        match &self.pages {
            None => samples.collect(),
            Some(pages) => {
                samples.filter_map(|sample| pages.complete(sample).transpose()).collect()
            }
        }
    }

    /// What has happened to processes' memory since the start.
    pub fn events(&self) -> Result<Vec<(ProcessId, Events)>> {
        let events: Vec<(types::ksm_process, types::ksm_events)> =
            read_all(&self.skel.maps.processes, 0)?;
        Ok(events.iter().map(|(process, e)| (process_id(process), self::events(e))).collect())
    }

    /// Attempts to merge since the start, of all processes: how many went well, and how many failed, by error.
    pub fn merges(&self) -> Result<(u64, BTreeMap<i32, u64>)> {
        let bss = self.bss()?;
        let errors = (0_i32..).zip(bss.merge_errors).filter(|(_, times)| *times > 0).collect();
        Ok((bss.merged + bss.zero_merged, errors))
    }

    /// Forgets processes that have ended, now that they have been read.
    pub fn forget(&self, ended: &[ProcessId]) -> Result<()> {
        for process in ended {
            let key = types::ksm_process {
                start_boottime_ns: process.start_boottime_ns,
                tgid: process.pid.cast_unsigned(),
                pad: 0,
            };
            // SAFETY: repr(C), without padding.
            let key = unsafe { plain::as_bytes(&key) };
            // It need not be there.
            _ = self.skel.maps.processes.delete(key);
        }
        Ok(())
    }

    /// Where merged pages have been written to since the start.
    pub fn places(&self) -> Result<Vec<Place>> {
        let places: Vec<(types::cow_key, types::cow_place)> = read_all(&self.skel.maps.places, 0)?;
        let place = |(key, place): &(types::cow_key, types::cow_place)| {
            Ok(Place {
                process: process_id(&key.process),
                comm: comm(&place.comm),
                stacks: (key.user_stack, key.kernel_stack),
                user: self.stack(key.user_stack)?,
                kernel: self.stack(key.kernel_stack)?,
                count: place.count,
            })
        };
        places.iter().map(place).collect()
    }

    /// The addresses of a stack, the innermost first; none if it could not be had.
    fn stack(&self, id: i32) -> Result<Vec<u64>> {
        let found = match u32::try_from(id) {
            Ok(id) => self.skel.maps.stacks.lookup(&id.to_ne_bytes(), MapFlags::ANY)?,
            Err(_) => None,
        };
        let address = |word: &[u8]| word.try_into().map(u64::from_ne_bytes).unwrap_or_default();
        let addresses = found.unwrap_or_default().chunks(8).map(address).collect::<Vec<_>>();
        Ok(addresses.into_iter().take_while(|&address| address != 0).collect())
    }

    /// Runs the program that looks at ksmd.
    fn look(&self) -> Result<()> {
        let ran = self.skel.progs.look.test_run(ProgramInput::default());
        ran.context("failed to run the program that looks at ksmd")?;
        Ok(())
    }

    fn bss(&self) -> Result<&types::bss> {
        self.skel.maps.bss_data.as_deref().context("failed to map the program's variables")
    }

    fn totals(&self) -> Result<Totals> {
        let bss = self.bss()?;
        Ok(Totals {
            merged: bss.merged,
            merge_failed: bss.merge_failed,
            zero_merged: bss.zero_merged,
            batches: bss.batches,
            scan_ns: bss.scan_ns + bss.going_on_ns,
            cow_breaks: bss.cow_breaks,
            advice: Advice {
                count: bss.advices,
                pages_to_scan: bss.advised_pages,
                scan_ms: bss.advised_scan_ms,
                cpu_percent: bss.advised_cpu_percent,
            },
            losses: Losses {
                processes: bss.lost_processes,
                switches: bss.lost_switches,
                cows: bss.lost_cows,
                places: bss.lost_places,
                missed: progs::misses(self.skel.object())?,
            },
        })
    }

    fn known(
        &self,
        wanted: Wanted,
        found: [bool; TRACEPOINTS.len()],
        refused: Option<String>,
    ) -> Result<Known> {
        let bss = self.bss()?;
        Ok(Known {
            merges: found[0] && found[1],
            advice: found[4],
            batches: self.ksmd.is_some(),
            full_scans: bss.knows_full_scans,
            merging_pages: bss.knows_merging_pages || self.pages.is_some(),
            rmap_items: bss.knows_merging_pages,
            zero_pages: bss.knows_zero_pages,
            owners: bss.knows_owners,
            item_bytes: bss.item_bytes,
            cow_ksm: ksmd::cow_breaks()?.is_some(),
            cow: wanted.cow,
            cow_refused: refused,
        })
    }

    fn attach(&mut self, wanted: Wanted, found: [bool; TRACEPOINTS.len()]) -> Result<()> {
        let progs = &self.skel.progs;
        let tracepoints = [
            &progs.ksm_merge_with_ksm_page,
            &progs.ksm_merge_one_page,
            &progs.ksm_start_scan,
            &progs.ksm_stop_scan,
            &progs.ksm_advisor,
        ];
        let there = tracepoints.into_iter().zip(found).filter(|(_, found)| *found);
        let probes = [&progs.do_wp_page_ends, &progs.do_wp_page_begins];
        let probes = probes.into_iter().filter(|_| wanted.cow);
        for prog in there.map(|(prog, _)| prog).chain(probes) {
            let name = prog.name().display();
            self._links.push(prog.attach().with_context(|| format!("failed to attach `{name}`"))?);
        }
        if let Some(pid) = self.ksmd {
            let switches = ksmd::open_switches(pid)?;
            let link = progs.ksmd_switch.attach_perf_event(switches.as_raw_fd());
            self._links.push(link.context("failed to watch ksmd's switches")?);
            // Now it is the link's to close (bpf_link_perf_detach() of libbpf).
            _ = switches.into_raw_fd();
        }
        if wanted.processes {
            let link = progs.samples.attach().context("failed to attach the task iterator")?;
            self.samples = Some(link);
        }
        Ok(())
    }

    fn elements(&self) -> Result<Elements> {
        let elements: Vec<(u32, types::hist_octave)> = read_all(&self.skel.maps.hists, 0)?;
        let mut octaves: Elements = Elements::default();
        for (index, counts) in elements {
            let types::hist_octave { slots, sum_ns, highest, lowest, above_us, above_ms } = counts;
            if slots.iter().all(|&count| count == 0) {
                continue;
            }
            let octave = Octave { slots, sum_ns, highest, lowest, above_us, above_ms };
            octaves[(index / OCTAVES) as usize].insert((index % OCTAVES) as usize, octave);
        }
        Ok(octaves)
    }
}

fn open(object: &mut MaybeUninit<OpenObject>) -> Result<OpenKsmstatSkel<'_>> {
    KsmstatSkelBuilder::default().open(object).context("failed to open the BPF programs")
}

/// Which tracepoints this kernel has. Those whose record is another are as good as missing.
fn find_tracepoints() -> Result<[bool; TRACEPOINTS.len()]> {
    let mut found = [false; TRACEPOINTS.len()];
    for (found, record) in found.iter_mut().zip(&TRACEPOINTS) {
        *found = tracepoints::find("ksm", record)? == Found::Fits;
    }
    Ok(found)
}

fn choose_programs(
    open: &mut OpenKsmstatSkel<'_>,
    wanted: Wanted,
    found: [bool; TRACEPOINTS.len()],
) {
    let progs = &mut open.progs;
    let tracepoints = [
        &mut progs.ksm_merge_with_ksm_page,
        &mut progs.ksm_merge_one_page,
        &mut progs.ksm_start_scan,
        &mut progs.ksm_stop_scan,
        &mut progs.ksm_advisor,
    ];
    for (prog, found) in tracepoints.into_iter().zip(found) {
        prog.set_autoload(found);
    }
    progs.do_wp_page_begins.set_autoload(wanted.cow);
    progs.do_wp_page_ends.set_autoload(wanted.cow);
    progs.samples.set_autoload(wanted.processes);
}

fn set_up(
    open: &mut OpenKsmstatSkel<'_>,
    wanted: Wanted,
    found: [bool; TRACEPOINTS.len()],
) -> Result<()> {
    // Linux 6.1 is the first to allow allocation there: see kvmexits.
    let preallocated = matches!(MapType::UserRingBuf.is_supported(), Ok(false));
    let most = if preallocated { MAX_PREALLOCATED } else { MAX_PROCESSES };
    let maps = &mut open.maps;
    maps.processes.set_max_entries(u32::try_from(host::pid_max()?.min(most))?)?;
    if preallocated {
        maps.processes.set_map_flags(0)?;
        maps.places.set_map_flags(0)?;
    }
    if wanted.cow {
        maps.cows.set_max_entries(COWS)?;
    }
    if wanted.stacks {
        maps.stacks.set_max_entries(STACKS)?;
        maps.places.set_max_entries(PLACES)?;
    }
    let knobs = open.maps.rodata_data.as_deref_mut().context("failed to map the knobs")?;
    knobs.has_tracepoints = found[2] && found[3];
    knobs.with_stacks = wanted.stacks;
    knobs.by_process = wanted.processes;
    open.maps.bss_data.as_deref_mut().context("failed to map the program's variables")?.epoch =
        FIRST_EPOCH;
    Ok(())
}

/// Why writes to merged pages cannot be seen here, if so: found out by trying.
fn refuses_probes() -> Result<Option<String>> {
    let mut object = MaybeUninit::uninit();
    let mut open = open(&mut object)?;
    choose_programs(
        &mut open,
        Wanted { cow: true, ..Wanted::default() },
        [false; TRACEPOINTS.len()],
    );
    let skel = match open.load() {
        Ok(skel) => skel,
        Err(err) => return Ok(Some(reason(&err))),
    };
    if let Err(err) = skel.progs.do_wp_page_ends.attach() {
        return Ok(Some(reason(&err)));
    }
    skel.progs.look.test_run(ProgramInput::default()).context("failed to run a program")?;
    let bss = skel.maps.bss_data.as_deref().context("failed to map the program's variables")?;
    Ok((!bss.knows_pages).then(|| "`vmemmap_base` is not in /proc/kallsyms".to_owned()))
}

/// The system's words, without its number.
fn reason(err: &libbpf_rs::Error) -> String {
    let text = err.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

fn process_id(process: &types::ksm_process) -> ProcessId {
    ProcessId { pid: process.tgid.cast_signed(), start_boottime_ns: process.start_boottime_ns }
}

fn sample(sample: &types::ksm_sample) -> Sample {
    Sample {
        process: process_id(&sample.process),
        mm: sample.mm,
        merging_pages: sample.merging_pages,
        rmap_items: sample.rmap_items,
        zero_pages: sample.zero_pages,
        comm: comm(&sample.comm),
    }
}

fn events(events: &types::ksm_events) -> Events {
    Events {
        merged: events.merged,
        merge_failed: events.merge_failed,
        zero_merged: events.zero_merged,
        cow_breaks: events.cow_breaks,
        cow_ns: events.cow_ns,
        comm: comm(&events.comm),
    }
}

fn comm(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
