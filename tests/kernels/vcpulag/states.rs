//! Where vCPUs' time went is what the kernel's books and the guests say, on every kernel.

use std::fs;

use jiff::Timestamp;
use serde_json::Value;

use super::{VCPULAG, ns};
use crate::util::guests::Guests;
use crate::util::tool::{Tool, json_lines, number};
use crate::util::{TempDir, alone, cpu_time_ns, loadgen, run_delay_ns, stolen_ns};

/// The states, of which each nanosecond is one.
const STATES: [&str; 5] = ["run_ns", "wait_ns", "halt_ns", "blocked_ns", "vmm_ns"];

fn time(row: &Value) -> Timestamp {
    row["time"].as_str().unwrap().parse().unwrap()
}

fn ns_between(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.duration_since(from).as_nanos()).unwrap()
}

/// A vCPU's row, and what the kernel's books of its thread said after it had come.
struct Seen {
    row: Value,
    cpu_time_ns: u64,
    run_delay_ns: u64,
    /// And of all CPUs.
    stolen_ns: u64,
    /// How long after the interval's end the books were read: by that the row may differ from them.
    late_ns: u64,
}

/// A vCPU from its first row on.
type Course = Vec<Seen>;

/// Watches all vCPUs of running guests for so many intervals after a first one.
fn watch(guests: &Guests, vcpus: usize, intervals: usize) -> Vec<Course> {
    let args = ["-c", &guests.cgroup(), "--json", "1", &(intervals + 1).to_string()];
    let mut tool = Tool::start(VCPULAG, &args);
    let mut courses: Vec<Course> = (0..vcpus).map(|_| Course::new()).collect();
    let mut lines = vec![tool.first_line().to_owned()];
    for _ in 0..=intervals {
        while lines.len() < vcpus {
            lines.push(tool.line());
        }
        let mut rows: Vec<Value> =
            lines.drain(..).map(|line| serde_json::from_str(&line).unwrap()).collect();
        rows.sort_by_key(|row| ns(row, "tid"));
        for (row, course) in rows.into_iter().zip(&mut courses) {
            let (pid, tid) = (ns(&row, "pid") as u32, ns(&row, "tid") as i32);
            let (cpu_time_ns, run_delay_ns) = (cpu_time_ns(pid, tid), run_delay_ns(pid, tid));
            let late_ns = ns_between(time(&row), Timestamp::now());
            // An event that comes while we have been preempted in a call of bpf(2) finds the kernel not ready for it
            // (bpf_disable_instrumentation()), and is told to be lost; the next one puts things right.
            assert!(ns(&row, "lost") <= 5, "{row}");
            course.push(Seen { row, cpu_time_ns, run_delay_ns, stolen_ns: stolen_ns(), late_ns });
        }
    }
    let ended = tool.wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    let told = ended.stderr.lines().all(|line| line.contains("events: the kernel skipped them"));
    assert!(told, "{}", ended.stderr);
    for course in &courses {
        assert!(course.iter().all(|seen| seen.row["tid"] == course[0].row["tid"]));
    }
    courses
}

/// The growth of one figure after the first row.
fn sum(course: &Course, name: &str) -> u64 {
    course[1..].iter().map(|seen| ns(&seen.row, name)).sum()
}

/// By how much the books may differ from the rows: they were not read at the same moment.
fn bracket_ns(course: &Course) -> u64 {
    course[0].late_ns + course[course.len() - 1].late_ns
}

/// Asserts that `seen` is `truth` but for so many thousandths and nanoseconds.
fn assert_near(seen: u64, truth: u64, thousandths: u64, ns: u64, what: &str) {
    let most = truth * thousandths / 1_000 + ns;
    assert!(seen.abs_diff(truth) <= most, "{what}: {seen} for {truth}, at most {most} off");
}

/// Every nanosecond on the wall is in one state.
fn assert_whole(course: &Course) {
    for pair in course.windows(2) {
        let [before, now] = pair else { unreachable!() };
        let row = &now.row;
        let states: u64 = STATES.iter().map(|state| ns(row, state)).sum();
        let own_ns = (row["interval_s"].as_f64().unwrap() * 1e9) as u64;
        assert_near(states, own_ns, 1, 0, "the row's own time");
        let wall_ns = ns_between(time(&before.row), time(row));
        let late_ns = before.late_ns + now.late_ns;
        assert_near(states, wall_ns, 1, late_ns, &format!("on the wall: {row}"));
        let began = ["wait_wakeup_ns", "wait_preempted_ns", "wait_throttled_ns"];
        assert_eq!(began.iter().map(|part| ns(row, part)).sum::<u64>(), ns(row, "wait_ns"));
    }
}

/// Waits and times on a CPU are those of the kernel's books.
fn assert_books(course: &Course) {
    let (first, last) = (&course[0], &course[course.len() - 1]);
    let edge_ns = bracket_ns(course);
    // The books have a wait when it has ended.
    let goes_on = |seen: &Seen| seen.row["waiting_ns"].as_u64().unwrap_or(0);
    let wait_edge_ns = edge_ns + goes_on(first).max(goes_on(last));
    let run_delay_ns = last.run_delay_ns - first.run_delay_ns;
    let row = &last.row;
    assert_near(sum(course, "wait_ns"), run_delay_ns, 1, wait_edge_ns, &format!("waits: {row}"));
    // The books have a time on a CPU when a tick has come, and without what was stolen meanwhile
    // (update_rq_clock_task()).
    let tick_ns = 10_000_000;
    let least_ns = last.cpu_time_ns - first.cpu_time_ns;
    let most_ns = least_ns + last.stolen_ns - first.stolen_ns;
    let on_cpu_ns = sum(course, "run_ns") + sum(course, "vmm_cpu_ns");
    let nearest_ns = on_cpu_ns.clamp(least_ns, most_ns);
    assert_near(on_cpu_ns, nearest_ns, 10, edge_ns + tick_ns, &format!("on a CPU: {row}"));
}

/// On a host where many take short turns, longer waits are blamed in part: see vcpulag(8).
const LOGGED_NS: u64 = 50_000_000;

/// Whoever made a vCPU wait adds up to its wait.
fn assert_culprits(course: &Course) {
    let of_row = |row: &Value| -> u64 {
        let named = row["culprits"].as_array().unwrap().iter();
        named.map(|culprit| ns(culprit, "ns")).sum::<u64>() + ns(&row["blamed_ns"], "nobody")
    };
    let blamed_ns: u64 = course[1..].iter().map(|seen| of_row(&seen.row)).sum();
    let wait_ns = sum(course, "wait_ns");
    let longest = course
        .iter()
        .flat_map(|seen| ["max_ns", "waiting_ns"].map(|name| seen.row[name].as_u64().unwrap_or(0)));
    let row = &course[course.len() - 1].row;
    let edge_ns = bracket_ns(course);
    assert!(blamed_ns <= wait_ns + wait_ns / 20 + edge_ns, "{blamed_ns} of {wait_ns}: {row}");
    if longest.max().unwrap() < LOGGED_NS {
        assert_near(blamed_ns, wait_ns, 50, edge_ns, &format!("culprits: {row}"));
    }
}

#[test]
fn spinning_guests_run_or_wait() {
    let _alone = alone();
    let guests = Guests::start(&["--vms", "7", "--duration", "120"]);
    for course in watch(&guests, 7, 4) {
        assert_whole(&course);
        assert_books(&course);
        assert_culprits(&course);
        let (run_ns, wait_ns) = (sum(&course, "run_ns"), sum(&course, "wait_ns"));
        assert!(wait_ns > run_ns, "7 spinners on 2 CPUs mostly wait: {}", course[1].row);
        assert_eq!(sum(&course, "halt_ns") + sum(&course, "blocked_ns"), 0, "{}", course[1].row);
        assert!(course.iter().all(|seen| seen.row["vcpu"] == 0), "{}", course[1].row);
    }
    guests.end();
}

#[test]
fn idle_guests_halt() {
    let _alone = alone();
    let guests = Guests::start(&["--vms", "2", "--workload", "idle=23", "--duration", "120"]);
    for course in watch(&guests, 2, 3) {
        assert_whole(&course);
        assert_books(&course);
        let whole: u64 = STATES.iter().map(|state| sum(&course, state)).sum();
        // KVM may poll for a while before a vCPU goes to sleep.
        let halted_ns = sum(&course, "halt_ns") + sum(&course, "poll_ns");
        let (wait_ns, row) = (sum(&course, "wait_ns"), &course[1].row);
        assert!(halted_ns * 10 >= (whole - wait_ns) * 9, "{halted_ns} of {whole} ns: {row}");
        assert_eq!(sum(&course, "blocked_ns"), 0, "{row}");
        assert!(sum(&course, "wakeups") >= 23, "{row}");
    }
    guests.end();
}

#[test]
fn a_vmm_that_takes_its_time_is_the_vmm() {
    let _alone = alone();
    let workload = "exits=pio:1000000@200";
    let args = ["--vms", "2", "--workload", workload, "--vmm-sleep", "1", "--duration", "120"];
    let guests = Guests::start(&args);
    for course in watch(&guests, 2, 3) {
        assert_whole(&course);
        assert_books(&course);
        let (vmm_ns, vmm_cpu_ns) = (sum(&course, "vmm_ns"), sum(&course, "vmm_cpu_ns"));
        let row = &course[1].row;
        // A sleep is at least a millisecond long.
        assert!(vmm_ns - vmm_cpu_ns >= 101 * 1_000_000, "{row}");
        assert!(ns(row, "wakeups") > 0, "{row}");
    }
    guests.end();
}

#[test]
fn each_vcpus_wait_is_the_steal_that_its_guest_reads() {
    let _alone = alone();
    let dir = TempDir::new("lag-steal");
    let path = dir.join("truth.json");
    let tool = Tool::start(VCPULAG, &["--csv"]);
    let guests = ["run", "--vms", "7", "--duration", "4", "--truth", path.to_str().unwrap()];
    let ended = Tool::start(&loadgen(), &guests).wait();
    assert!(ended.status.success(), "{}", ended.stderr);
    let rows = tool.end(libc::SIGINT).rows();
    let truth = fs::read_to_string(&path).unwrap();
    let truth = json_lines(&truth);
    assert_eq!(truth.len(), 7);
    for vcpu in truth {
        let row = rows.iter().find(|row| number(row, "tid") == ns(&vcpu, "tid"));
        let row = row.unwrap_or_else(|| panic!("no row for {vcpu}"));
        assert_eq!(row["vm"], vcpu["vm"].as_str().unwrap());
        let (wait_ns, steal_ns) = (number(row, "wait_ns"), ns(&vcpu, "steal_ns"));
        assert!(steal_ns > 1_000_000_000, "7 spinners wait: {vcpu}");
        // What a guest waits before its first instruction and after its last look it does not know.
        let likely_ns = steal_ns - steal_ns / 50..steal_ns + steal_ns / 50 + 700_000_000;
        assert!(likely_ns.contains(&wait_ns), "{wait_ns} ns: {vcpu} {row:?}");
    }
}
