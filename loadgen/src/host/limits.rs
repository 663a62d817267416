//! The limits on the number of guests, and how many they allow. Pure.

use serde_json::json;

use super::{Finding, Verdict};
use crate::room::{Kind, Limit, Room, mib};
use crate::size::size_text;

/// A line for each, and one for what they come to: nothing where KVM does not work.
pub(super) fn all(room: &Room, kvm_works: bool) -> Vec<Finding> {
    let mut findings: Vec<_> = room.limits.iter().map(limit).collect();
    findings.push(guests(room, kvm_works));
    findings
}

fn limit(limit: &Limit) -> Finding {
    let (key, what) = names(limit.kind);
    let guests = limit.guests();
    let verdict = if guests == Some(0) { Verdict::Fail } else { Verdict::Ok };
    let is_memory = matches!(limit.kind, Kind::Memory | Kind::MemoryCgroup);
    let unit = |name: &str| if is_memory { format!("{name}_bytes") } else { name.to_owned() };
    let mut details = json!({"guests": guests, "file": limit.file, "enforced": limit.is_enforced});
    for (name, number) in
        [("limit", limit.most), ("used", Some(limit.used)), ("reserved", Some(limit.room))]
    {
        details[unit(name)] = number.into();
    }
    let number = |number| if is_memory { mib(number) } else { format!("{number}") };
    let value = match (limit.most, guests) {
        (None, _) => "no limit".to_owned(),
        (Some(most), None) if !limit.is_enforced => format!("{most}, not for us (capabilities)"),
        (Some(most), None) => format!("{most}, of which a guest needs {}", limit.used),
        (Some(most), Some(guests)) => match limit.kind {
            Kind::Memory => format!("{}: {guests} guests", number(most)),
            _ => format!("{}, {} in use: {guests} guests", number(most), number(limit.used)),
        },
    };
    let finding = Finding::new(key, what, verdict, value, details);
    match verdict {
        Verdict::Fail => finding.remedy(limit.remedy(1)),
        _ => finding,
    }
}

fn names(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::PidMax => ("pid_max", "kernel.pid_max"),
        Kind::ThreadsMax => ("threads_max", "threads-max"),
        Kind::PidsCgroup => ("pids_cgroup", "cgroup's pids"),
        Kind::UserThreads => ("rlimit_nproc", "RLIMIT_NPROC"),
        Kind::Descriptors => ("rlimit_nofile", "RLIMIT_NOFILE"),
        Kind::FileMax => ("file_max", "fs.file-max"),
        Kind::Memory => ("memory", "MemAvailable"),
        Kind::MemoryCgroup => ("memory_cgroup", "cgroup's memory"),
    }
}

/// How many guests of one vCPU fit, and what would let more of them: as many as the next limit allows.
fn guests(room: &Room, kvm_works: bool) -> Finding {
    let binding = room.binding();
    let each = &room.each;
    let (most, limit) = match kvm_works {
        true => binding.map(|(limit, guests)| (guests, names(limit.kind).0)).unzip(),
        false => (Some(0), Some("dev_kvm")),
    };
    let details = json!({
        "guests": most,
        "limit": limit,
        "vcpus_each": 1,
        "threads_each": each.threads,
        "files_each": each.files,
        "descriptors_each": each.descriptors,
        "memory_each_bytes": each.memory_bytes,
    });
    let of = |verdict, value: String| Finding::new("guests", "guests", verdict, value, details);
    if !kvm_works {
        return of(Verdict::Fail, "none: KVM cannot be used".to_owned());
    }
    let Some((limit, guests)) = binding else {
        return of(Verdict::Unknown, "nothing is known to limit them".to_owned());
    };
    let verdict = if guests == 0 { Verdict::Fail } else { Verdict::Ok };
    let each = format!("{} threads, {}", each.threads, size_text(each.memory_bytes));
    let finding = of(verdict, format!("{guests} with {each} each: {limit} binds"));
    let next = room.without(limit).unwrap_or(u64::MAX).min(limit.ceiling());
    match limit.kind {
        Kind::Memory => finding.remedy("free memory, or add some"),
        _ if next <= guests => finding,
        _ => finding.remedy(format!("{} # for {next}", limit.remedy(next))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::Each;

    fn room(pid_max: u64, available_bytes: u64) -> Room {
        let each =
            Each { threads: 2, files: 3, descriptors: 6, memory_bytes: 1 << 20, filled_bytes: 0 };
        let limit = |kind, most, used, each| Limit { used, each, ..Limit::new(kind, Some(most)) };
        let limits = vec![
            Limit { room: 400, ..limit(Kind::PidMax, pid_max, 101, each.threads) },
            limit(Kind::Descriptors, 1_024, each.descriptors, 0),
            Limit { is_enforced: false, ..limit(Kind::FileMax, 1_009, 7, each.files) },
            Limit { room: 1 << 30, ..limit(Kind::Memory, available_bytes, 0, each.memory_bytes) },
            Limit::new(Kind::PidsCgroup, None),
        ];
        Room { each, limits }
    }

    fn told(finding: &Finding) -> (Verdict, &str, Option<&str>) {
        (finding.verdict, &finding.value, finding.remedy.as_deref())
    }

    #[test]
    fn the_binding_limit_is_named_with_what_raises_it() {
        let found = all(&room(32_768, 21 << 30), true);
        assert_eq!(told(&found[0]), (Verdict::Ok, "32768, 101 in use: 16133 guests", None));
        assert_eq!(told(&found[1]), (Verdict::Ok, "1024, of which a guest needs 6", None));
        assert_eq!(told(&found[2]), (Verdict::Ok, "1009, not for us (capabilities)", None));
        assert_eq!(told(&found[3]), (Verdict::Ok, "21504M: 20480 guests", None));
        assert_eq!(told(&found[4]), (Verdict::Ok, "no limit", None));
        let (value, remedy) = (
            "16133 with 2 threads, 1M each: kernel.pid_max binds",
            "sysctl -w kernel.pid_max=41984 # for 20480",
        );
        assert_eq!(told(&found[5]), (Verdict::Ok, value, Some(remedy)));
        assert_eq!(found[5].details["limit"], "pid_max");
        assert_eq!(found[0].details["reserved"], 400);
        assert_eq!(found[3].details["reserved_bytes"], 1 << 30);
        assert_eq!(found[3].details["limit_bytes"], 21_u64 << 30);
    }

    #[test]
    fn no_more_than_can_be_set_is_advised() {
        let found = all(&room(1 << 21, 4 << 40), true);
        let remedy = "sysctl -w kernel.pid_max=4194304 # for 2096901";
        assert_eq!(found[5].remedy.as_deref(), Some(remedy));
        assert_eq!(all(&room(1 << 22, 4 << 40), true)[5].remedy, None);
    }

    #[test]
    fn memory_has_no_sysctl() {
        let found = all(&room(1 << 22, 21 << 30), true);
        assert_eq!(found[5].value, "20480 with 2 threads, 1M each: MemAvailable binds");
        assert_eq!(found[5].remedy.as_deref(), Some("free memory, or add some"));
    }

    #[test]
    fn a_limit_that_allows_no_guest_fails() {
        let found = all(&room(500, 21 << 30), true);
        let remedy = Some("sysctl -w kernel.pid_max=1024");
        assert_eq!(told(&found[0]), (Verdict::Fail, "500, 101 in use: 0 guests", remedy));
        assert_eq!(found[5].verdict, Verdict::Fail);
    }
    #[test]
    fn without_kvm_there_are_none() {
        let found = all(&room(32_768, 21 << 30), false);
        assert_eq!(told(&found[0]).0, Verdict::Ok);
        assert_eq!(told(&found[5]), (Verdict::Fail, "none: KVM cannot be used", None));
        assert_eq!(
            (&found[5].details["guests"], &found[5].details["limit"]),
            (&json!(0), &json!("dev_kvm"))
        );
    }
}
