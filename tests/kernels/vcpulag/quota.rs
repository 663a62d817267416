//! vCPUs that have used up their cgroup's quota.

use super::{VCPULAG, ns, rows, taken_by_others};
use crate::util::alone;
use crate::util::guests::Guests;
use crate::util::tool::Tool;

#[test]
fn a_vcpu_that_waits_for_its_own_quota_is_nobodys_victim() {
    let _alone = alone();
    let guests = Guests::on_cpu(1, &["--vms", "1", "--cpu-max", "30", "--duration", "60"]);
    let cgroup = guests.cgroup();
    let rows = rows(&["-c", &cgroup, "-d", "3"]);
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    let (wait_ns, throttled_ns) = (ns(row, "wait_ns"), ns(row, "wait_throttled_ns"));
    assert!((1_900_000_000..2_500_000_000).contains(&wait_ns), "70 % of 3 s: {row}");
    // What goes on at the interval's end is not known to be for the quota: at most a period less the quota.
    let others_ns = taken_by_others(row, 0) + ns(&row["blamed_ns"], "nobody");
    assert!(throttled_ns + others_ns + 80_000_000 >= wait_ns - wait_ns / 50, "{row}");
    assert!(others_ns * 5 <= wait_ns, "but for those who work on this machine, too: {row}");
    let text = Tool::start(VCPULAG, &["-c", &cgroup, "-d", "2"]).wait().stdout;
    assert!(text.contains("\n  waited for its quota "), "{text}");
    // Not the end: a host whose sched_switch hides tasks adds what was counted from totals.
    assert!(text.contains(" of that was their own quota\n"), "{text}");
    guests.end();
}
