//! Filters take exactly the waiting tasks they name.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::RUNQLAT;
use crate::util::threads::{Threads, burn, pin};
use crate::util::tool::{CsvRow, Tool, number, total};
use crate::util::{alone, run_delay_ns};

/// A process that sleeps 101 times when told to, and stands still before and after.
struct Sleeper {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

const SLEEPS: u64 = 101;

impl Sleeper {
    fn new(command: &mut Command) -> Self {
        let script = format!(
            "import sys, time\nprint(flush=True)\nsys.stdin.readline()\n\
             for i in range({SLEEPS}): time.sleep(0.005)\nprint(flush=True)\nsys.stdin.readline()"
        );
        let mut child = command
            .args(["/usr/bin/python3", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut sleeper = Self { child, stdout };
        sleeper.expect();
        sleeper
    }

    fn expect(&mut self) {
        self.stdout.read_line(&mut String::new()).unwrap();
        // It has written its line and goes to sleep for the next word.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }

    fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }

    fn run_delay_ns(&self) -> u64 {
        run_delay_ns(self.pid(), self.pid() as i32)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A cgroup of version 2 and one below it, removed when dropped.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"));
        let root = Path::new(mount.expect("a cgroup2 mount").split(' ').nth(1).unwrap());
        let cgroup = Self(root.join(format!("runqlat-test-{}", std::process::id())));
        fs::create_dir_all(cgroup.0.join("below")).unwrap();
        cgroup
    }

    fn add(&self, below: &str, pid: u32) {
        fs::write(self.0.join(below).join("cgroup.procs"), pid.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        drop(fs::remove_dir(self.0.join("below")));
        drop(fs::remove_dir(&self.0));
    }
}

/// Traces a cgroup by process while these tasks sleep and wake; also what their books grew by.
fn trace(cgroup: &Path, tasks: &mut [Sleeper]) -> (Vec<CsvRow>, Vec<u64>) {
    let before: Vec<u64> = tasks.iter().map(Sleeper::run_delay_ns).collect();
    let tool = Tool::start(RUNQLAT, &["-P", "-c", cgroup.to_str().unwrap(), "--csv"]);
    tasks.iter_mut().for_each(Sleeper::go);
    tasks.iter_mut().for_each(Sleeper::expect);
    let rows = tool.end(libc::SIGINT).rows();
    let growth = tasks.iter().zip(before).map(|(task, before)| task.run_delay_ns() - before);
    (rows, growth.collect())
}

#[test]
fn a_cgroup_takes_exactly_its_tasks_and_never_their_sleep() {
    let _alone = alone();
    let cgroup = Cgroup::new();
    let mut tasks: Vec<Sleeper> = (0..4).map(|_| Sleeper::new(&mut Command::new("env"))).collect();
    cgroup.add("", tasks[0].pid());
    cgroup.add("below", tasks[1].pid());
    cgroup.add("below", tasks[3].pid());

    // The one above, one below and one outside.
    let (rows, growth) = trace(&cgroup.0, &mut tasks[..3]);
    assert_eq!(rows.len(), 2, "the third is outside, the fourth slept: {rows:?}");
    for (task, truth) in tasks[..2].iter().zip(growth) {
        let row = rows.iter().find(|row| number(row, "pid") == u64::from(task.pid())).unwrap();
        assert!(number(row, "count") >= SLEEPS);
        assert_eq!(number(row, "sum_ns"), truth, "half a second of sleep is not in it");
    }

    let (rows, growth) = trace(&cgroup.0.join("below"), &mut tasks[3..]);
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!(number(&rows[0], "pid"), u64::from(tasks[3].pid()));
    assert_eq!(number(&rows[0], "sum_ns"), growth[0]);
}

#[test]
fn a_thread_and_a_process_are_taken_alone() {
    let _alone = alone();
    let threads = Threads::asleep(5, |_| burn(std::time::Duration::from_millis(50)));
    let wanted = threads.tids[2].to_string();
    let tool = Tool::start(RUNQLAT, &["-L", "-t", &wanted, "--csv"]);
    threads.go();
    threads.finish();
    let rows = tool.end(libc::SIGINT).rows();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["tid"], wanted);

    let mut sleeper = Sleeper::new(&mut Command::new("env"));
    let tool = Tool::start(RUNQLAT, &["-P", "-p", &sleeper.pid().to_string(), "--csv"]);
    sleeper.go();
    sleeper.expect();
    let rows = tool.end(libc::SIGINT).rows();
    assert_eq!(rows.len(), 1);
    assert_eq!(number(&rows[0], "pid"), u64::from(sleeper.pid()));
    assert_eq!(rows[0]["comm"], "python3");
}

#[test]
fn cpus_are_those_where_waits_end() {
    let _alone = alone();
    let threads = Threads::asleep(7, |_| {
        pin(1);
        burn(std::time::Duration::from_millis(30));
    });
    let pid = std::process::id().to_string();
    let on_0 = Tool::start(RUNQLAT, &["-C", "0", "--by", "cpu", "--csv"]);
    let on_1 = Tool::start(RUNQLAT, &["-C", "1", "-L", "-p", &pid, "--csv"]);
    let on_both = Tool::start(RUNQLAT, &["-C", "0-1", "--by", "cpu", "--csv"]);
    threads.go();
    threads.finish();
    let cpus = |tool: Tool| {
        let rows = tool.end(libc::SIGINT).rows();
        rows.iter().map(|row| row["cpu"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(cpus(on_0), ["0"]);
    assert_eq!(cpus(on_both), ["0", "1"]);
    let rows = on_1.end(libc::SIGINT).rows();
    for tid in &threads.tids {
        assert!(rows.iter().any(|row| row["tid"] == tid.to_string()), "{tid} waited on CPU 1");
    }
    assert!(total(&rows, "sum_ns") > 7 * 30_000_000, "they had to wait for each other");
}

#[test]
fn a_pid_namespace_is_the_tasks_own() {
    let _alone = alone();
    let mut sleeper =
        Sleeper::new(Command::new("unshare").args(["--pid", "--fork", "--kill-child"]));
    let children = format!("/proc/{0}/task/{0}/children", sleeper.pid());
    let child: i32 = fs::read_to_string(children).unwrap().trim().parse().unwrap();
    let inside = fs::metadata(format!("/proc/{child}/ns/pid")).unwrap().ino();
    let host = fs::metadata("/proc/self/ns/pid").unwrap().ino();
    let tool = Tool::start(RUNQLAT, &["--pidnss", "--csv"]);
    sleeper.go();
    sleeper.expect();
    let rows = tool.end(libc::SIGINT).rows();
    let count = |inum: u64| {
        let row = rows.iter().find(|row| number(row, "pidns") == inum);
        row.map_or(0, |row| number(row, "count"))
    };
    assert!(count(inside) >= SLEEPS && count(inside) < 2 * SLEEPS, "{rows:?}");
    assert!(count(host) > 0, "unshare's own namespace is the host's: {rows:?}");
}
