//! `--slower`: each wait that was long, as it ends. Pure but for the local time zone.

use std::io::Write;

use anyhow::Result;
use common::output::{self, Field, Format, printable, short_duration};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::rows::{Culprit, Thread};

/// A wait that was long.
#[derive(Clone, Debug)]
pub struct LongWait {
    /// When it ended.
    pub end: Timestamp,
    /// Whose it was.
    pub thread: Thread,
    /// Its process's name.
    pub comm: String,
    /// The CPU that it got.
    pub cpu: u32,
    /// How long it was, in nanoseconds.
    pub wait_ns: u64,
    /// How long of it was for the vCPU's own quota.
    pub throttled_ns: u64,
    /// It began when the vCPU was pushed off its CPU, not when it was woken.
    pub preempted: bool,
    /// Who ran the longest at a stretch meanwhile, if that is known.
    pub culprit: Option<Culprit>,
    /// For how long.
    pub culprit_ns: u64,
}

const COLUMNS: [&str; 12] = [
    "time",
    "pid",
    "tid",
    "vm",
    "vcpu",
    "cpu",
    "wait_ns",
    "throttled_ns",
    "began",
    "culprit",
    "culprit_pid",
    "culprit_ns",
];

/// The widths of the VM's column and of what remains for the culprit: a thread's name. Longer names have lines of their
/// own.
const VCPU: usize = 15;
const CULPRIT: usize = 15;

/// What comes before the first one.
pub fn begin(out: &mut dyn Write, format: Format) -> Result<()> {
    match format {
        Format::Text => writeln!(
            out,
            "{:<12} {:<VCPU$} {:>3} {:>5} {:<9} {:>9} WHO RAN",
            "TIME", "VM/VCPU", "CPU", "WAIT", "BEGAN", "THROTTLED"
        )?,
        Format::Csv(_) => output::write_csv_header(out, COLUMNS)?,
        Format::Json => {}
    }
    Ok(())
}

/// One wait of the VM of that name, for which the other, if any, is to blame.
pub fn write(
    out: &mut dyn Write,
    format: Format,
    wait: &LongWait,
    vm: &str,
    culprit: Option<&str>,
) -> Result<()> {
    let began = if wait.preempted { "preempted" } else { "woken" };
    if format == Format::Text {
        let clock = wait.end.to_zoned(TimeZone::system()).strftime("%H:%M:%S%.3f").to_string();
        let vcpu = wait.thread.vcpu.map_or_else(|| "?".to_owned(), |vcpu| vcpu.to_string());
        let vcpu = printable(&format!("{vm}/{vcpu}"));
        match vcpu.chars().count() <= VCPU {
            true => write!(out, "{clock:<12} {vcpu:<VCPU$}")?,
            false => write!(out, "{clock:<12} {vcpu}\n{:<12} {:<VCPU$}", "", "")?,
        }
        write!(
            out,
            " {:>3} {:>5} {began:<9} {:>9}",
            wait.cpu,
            short_duration(wait.wait_ns),
            short_duration(wait.throttled_ns)
        )?;
        match culprit {
            Some(culprit) => {
                let culprit = printable(culprit);
                if culprit.chars().count() > CULPRIT {
                    write!(out, "\n{:<12}", "")?;
                }
                writeln!(out, " {culprit} {}", short_duration(wait.culprit_ns))?;
            }
            None => writeln!(out)?,
        }
        return Ok(());
    }
    let values = [
        format!("{:.6}", wait.end).into(),
        wait.thread.vm.pid.into(),
        wait.thread.tid.into(),
        vm.into(),
        wait.thread.vcpu.into(),
        wait.cpu.into(),
        wait.wait_ns.into(),
        wait.throttled_ns.into(),
        began.into(),
        culprit.into(),
        wait.culprit.as_ref().map(|culprit| culprit.pid).into(),
        wait.culprit_ns.into(),
    ];
    let fields = COLUMNS.into_iter().zip(values).collect::<Vec<Field>>();
    match format {
        Format::Json => output::write_json_line(out, fields),
        _ => output::write_csv_row(out, fields),
    }
}

#[cfg(test)]
mod tests {
    use common::args::CsvKind;

    use super::*;
    use crate::rows::{Kind, VmId};

    fn wait() -> LongWait {
        LongWait {
            end: "2026-11-23T04:42:10.123456Z".parse().unwrap(),
            thread: Thread {
                vm: VmId { pid: 4_200, start_boottime_ns: 1 },
                vcpu: Some(3),
                tid: 4_203,
            },
            comm: "qemu".to_owned(),
            cpu: 1,
            wait_ns: 51_200_000,
            throttled_ns: 4_400_000,
            preempted: true,
            culprit: Some(Culprit { kind: Kind::Vm, pid: 4_300, comm: "qemu".to_owned() }),
            culprit_ns: 9_900_000,
        }
    }

    fn of_nobody() -> LongWait {
        let wait = wait();
        let thread = Thread { vcpu: None, ..wait.thread };
        LongWait { thread, preempted: false, culprit: None, culprit_ns: 0, ..wait }
    }

    fn written(format: Format, waits: &[(&LongWait, &str, Option<&str>)]) -> String {
        let mut out = Vec::new();
        begin(&mut out, format).unwrap();
        for (wait, vm, culprit) in waits {
            write(&mut out, format, wait, vm, *culprit).unwrap();
        }
        String::from_utf8(out).unwrap()
    }

    /// But for the time of day, which depends on where that is.
    fn text(waits: &[(&LongWait, &str, Option<&str>)]) -> String {
        let text = written(Format::Text, waits);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        text.lines().map(|line| format!("{}\n", line[12..].trim_end())).collect()
    }

    #[test]
    fn a_wait_is_a_line() {
        let waits = [(&wait(), "web-1", Some("kworker/u256:10")), (&of_nobody(), "web-1", None)];
        insta::assert_snapshot!(text(&waits), @r"
        VM/VCPU         CPU  WAIT BEGAN     THROTTLED WHO RAN
        web-1/3           1  51ms preempted     4.4ms kworker/u256:10 9.9ms
        web-1/?           1  51ms woken         4.4ms
        ");
    }

    #[test]
    fn what_is_too_long_has_a_line_of_its_own() {
        let waits = [(&wait(), "a-name-that-is-long", Some("another-name-that-is-long"))];
        insta::assert_snapshot!(text(&waits), @r"
        VM/VCPU         CPU  WAIT BEGAN     THROTTLED WHO RAN
        a-name-that-is-long/3
                          1  51ms preempted     4.4ms
        another-name-that-is-long 9.9ms
        ");
    }

    #[test]
    fn a_name_cannot_forge_output() {
        let text = text(&[(&wait(), "a\nb\x1b[31m", Some("c\r\nd"))]);
        assert!(text.contains(" a?b?[31m/3 ") && text.contains(" c??d "), "{text}");
        assert_eq!(text.lines().count(), 2);
    }

    #[test]
    fn csv_and_json_have_the_same_names() {
        let waits = [(&wait(), "web,1", Some("db")), (&of_nobody(), "web,1", None)];
        insta::assert_snapshot!(written(Format::Csv(CsvKind::Summary), &waits), @r#"
        time,pid,tid,vm,vcpu,cpu,wait_ns,throttled_ns,began,culprit,culprit_pid,culprit_ns
        2026-11-23T04:42:10.123456Z,4200,4203,"web,1",3,1,51200000,4400000,preempted,db,4300,9900000
        2026-11-23T04:42:10.123456Z,4200,4203,"web,1",,1,51200000,4400000,woken,,,0
        "#);
        let json = written(Format::Json, &waits);
        let mut objects = json.lines().map(|line| {
            serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(line).unwrap()
        });
        let (wait, of_nobody) = (objects.next().unwrap(), objects.next().unwrap());
        assert!(COLUMNS.into_iter().eq(wait.keys().map(String::as_str)), "{json}");
        assert_eq!((&wait["culprit"], &wait["culprit_pid"]), (&"db".into(), &4_300.into()));
        assert!(of_nobody["culprit"].is_null() && of_nobody["vcpu"].is_null(), "{json}");
    }
}
