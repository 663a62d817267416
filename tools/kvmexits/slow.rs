//! `--slower`: each exit that took long, as it ends. Pure but for the local time zone.

use std::io::Write;

use anyhow::Result;
use common::output::{self, Field, Format, printable, short_duration};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::rows::{Parts, Source};

/// An exit that took long.
#[derive(Clone, Debug)]
pub struct SlowExit {
    /// When it ended.
    pub end: Timestamp,
    /// Whose; the writer is the vCPU's thread.
    pub source: Source,
    /// How long it took, in nanoseconds.
    pub total_ns: u64,
    /// Where that time went.
    pub parts: Parts,
    /// The process's name.
    pub comm: String,
}

/// The width of names.
const NAME: usize = 18;

const COLUMNS: [&str; 14] = [
    "time",
    "pid",
    "tid",
    "vm",
    "vcpu",
    "kind",
    "reason",
    "code",
    "detail",
    "total_ns",
    "kernel_ns",
    "userspace_ns",
    "asleep_ns",
    "runqueue_ns",
];

/// What comes before the first one.
pub fn begin(out: &mut dyn Write, format: Format) -> Result<()> {
    match format {
        Format::Text => writeln!(
            out,
            "{:<12} {:<18} {:<18} {:>5} {:>5} {:>5} {:>5} {:>5}",
            "TIME", "VM/VCPU", "REASON", "TOTAL", "kern", "user", "sleep", "runq"
        )?,
        Format::Csv(_) => output::write_csv_header(out, COLUMNS)?,
        Format::Json => {}
    }
    Ok(())
}

/// One exit of the VM of that name.
pub fn write(out: &mut dyn Write, format: Format, slow: &SlowExit, vm: &str) -> Result<()> {
    match format {
        Format::Text => write_text(out, slow, vm),
        Format::Csv(_) => output::write_csv_row(out, slow.fields(vm)),
        Format::Json => output::write_json_line(out, slow.fields(vm)),
    }
}

fn write_text(out: &mut dyn Write, slow: &SlowExit, vm: &str) -> Result<()> {
    let Source { vcpu, reason, detail, .. } = slow.source;
    let clock = slow.end.to_zoned(TimeZone::system()).strftime("%H:%M:%S%.3f").to_string();
    let vcpu = vcpu.map_or_else(|| "?".to_owned(), |vcpu| vcpu.to_string());
    let vm = printable(&format!("{vm}/{vcpu}"));
    let name = reason.name();
    write!(out, "{clock:<12} ")?;
    // What is too long for its column is on a line of its own, so that the figures stay in theirs.
    for (i, text) in [vm, name.into_owned()].into_iter().enumerate() {
        match text.chars().count() <= NAME {
            true => write!(out, "{text:<NAME$}")?,
            false => write!(out, "{text}\n{:1$}", "", (i + 1) * (NAME + 1) + 12)?,
        }
        if i == 0 {
            write!(out, " ")?;
        }
    }
    let Parts { userspace_ns, asleep_ns, runqueue_ns } = slow.parts;
    for ns in [slow.total_ns, slow.kernel_ns(), userspace_ns, asleep_ns, runqueue_ns] {
        write!(out, " {:>5}", short_duration(ns))?;
    }
    match detail {
        Some(detail) => writeln!(out, "\n{:32}{detail}", "")?,
        None => writeln!(out)?,
    }
    Ok(())
}

impl SlowExit {
    fn kernel_ns(&self) -> u64 {
        let Parts { userspace_ns, asleep_ns, runqueue_ns } = self.parts;
        self.total_ns.saturating_sub(userspace_ns + asleep_ns + runqueue_ns)
    }

    fn fields(&self, vm: &str) -> impl Iterator<Item = Field> {
        let Source { vm: id, vcpu, writer, reason, detail } = self.source;
        let Parts { userspace_ns, asleep_ns, runqueue_ns } = self.parts;
        let values = [
            format!("{:.6}", self.end).into(),
            id.pid.into(),
            writer.into(),
            vm.into(),
            vcpu.into(),
            reason.kind().into(),
            reason.name().into(),
            reason.code.into(),
            detail.map(|detail| detail.to_string()).into(),
            self.total_ns.into(),
            self.kernel_ns().into(),
            userspace_ns.into(),
            asleep_ns.into(),
            runqueue_ns.into(),
        ];
        COLUMNS.into_iter().zip(values)
    }
}

#[cfg(test)]
mod tests {
    use common::args::CsvKind;
    use common::exits::Reason;

    use super::*;
    use crate::detail::Detail;
    use crate::rows::VmId;

    fn slow() -> SlowExit {
        SlowExit {
            end: "2026-11-23T04:42:10.123456Z".parse().unwrap(),
            source: Source {
                vm: VmId { pid: 4_200, start_boottime_ns: 1 },
                vcpu: Some(3),
                writer: 4_203,
                reason: Reason::userspace(2, 0),
                detail: None,
            },
            total_ns: 5_100_000,
            parts: Parts { userspace_ns: 4_000_000, asleep_ns: 600, runqueue_ns: 1_000_000 },
            comm: "qemu".to_owned(),
        }
    }

    fn with_detail(reason: Reason) -> SlowExit {
        let detail = Some(Detail::Port { port: 0xf5, out: true });
        let slow = slow();
        SlowExit { source: Source { vcpu: None, reason, detail, ..slow.source }, ..slow }
    }

    fn written(format: Format, vm: &str, slow: &SlowExit) -> String {
        let mut out = Vec::new();
        begin(&mut out, format).unwrap();
        write(&mut out, format, slow, vm).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// But for the time of day, which depends on where that is.
    fn text(vm: &str, slow: &SlowExit) -> String {
        let text = written(Format::Text, vm, slow);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        text.lines().map(|line| format!("{}\n", &line[12..])).collect()
    }

    #[test]
    fn an_exit_is_a_line() {
        insta::assert_snapshot!(text("web-1", &slow()), @r"
        VM/VCPU            REASON             TOTAL  kern  user sleep  runq
        web-1/3            KVM_EXIT_IO        5.1ms  99us 4.0ms 600ns 1.0ms
        ");
    }

    #[test]
    fn what_is_too_long_has_a_line_of_its_own() {
        let slow = with_detail(Reason::hardware(1, 48));
        insta::assert_snapshot!(text("a-name-that-is-long", &slow), @r"
        VM/VCPU            REASON             TOTAL  kern  user sleep  runq
        a-name-that-is-long/?
                           EPT_VIOLATION      5.1ms  99us 4.0ms 600ns 1.0ms
                           out port 0xf5
        ");
    }

    #[test]
    fn a_name_cannot_forge_output() {
        assert!(text("a\nb\x1b[31m", &slow()).contains(" a?b?[31m/3 "));
    }

    #[test]
    fn csv_and_json_have_the_same_names() {
        let slow = with_detail(Reason::userspace(2, 0));
        insta::assert_snapshot!(written(Format::Csv(CsvKind::Summary), "web,1", &slow), @r#"
        time,pid,tid,vm,vcpu,kind,reason,code,detail,total_ns,kernel_ns,userspace_ns,asleep_ns,runqueue_ns
        2026-11-23T04:42:10.123456Z,4200,4203,"web,1",,userspace,KVM_EXIT_IO,2,out port 0xf5,5100000,99400,4000000,600,1000000
        "#);
        let json = written(Format::Json, "web,1", &slow);
        let object: serde_json::Map<String, serde_json::Value> =
            serde_json::from_str(&json).unwrap();
        assert!(COLUMNS.into_iter().eq(object.keys().map(String::as_str)), "{json}");
    }
}
