//! Every reason there is, from the raw fields of its event.

use super::*;

/// A line of testdata/kvm_exit.txt: `isa`, `exit_reason` and the name.
fn fields(line: &str) -> (u32, u32, &str) {
    let fields = line.strip_prefix("isa=").and_then(|line| line.split_once(" exit_reason=0x"));
    let (isa, (raw, name)) =
        fields.map(|(isa, rest)| (isa, rest.split_once(" -> ").unwrap())).unwrap();
    (isa.parse().unwrap(), u32::from_str_radix(raw, 16).unwrap(), name)
}

fn all(table: Table) -> impl Iterator<Item = (Reason, &'static str)> {
    table.reasons().iter().map(move |&(code, name)| (Reason { table, code }, name))
}

#[test]
fn raw_fields_have_the_names_the_kernel_prints() {
    let lines = include_str!("testdata/kvm_exit.txt").lines();
    let events: Vec<_> = lines.filter(|line| !line.starts_with('#')).map(fields).collect();
    for &(isa, raw, name) in &events {
        assert_eq!(Reason::hardware(isa, raw).name(), name, "isa {isa}, {raw:#x}");
    }
    for (reason, name) in all(Table::Vmx).chain(all(Table::Svm)) {
        let isa = if reason.table == Table::Vmx { 1 } else { 2 };
        assert!(events.contains(&(isa, reason.code, name)), "{name} has no line");
    }
}

#[test]
fn tables_are_sorted_and_no_name_is_there_twice() {
    for table in Table::ALL {
        assert!(table.reasons().is_sorted_by(|a, b| a.0 < b.0), "{table:?}");
        let mut names: Vec<_> = all(table).map(|(_, name)| spelling(name)).collect();
        names.extend(table.other_names().iter().map(|(_, name)| spelling(name)));
        names.sort();
        assert!(names.is_sorted_by(|a, b| a < b), "{table:?}");
    }
    assert!(all(Table::Userspace).all(|(_, name)| name.starts_with("KVM_EXIT_")));
}

#[test]
fn every_name_names_its_reason() {
    let errors = [libc::EINTR, libc::EAGAIN, libc::EHWPOISON, 77].map(|n| Reason::userspace(0, -n));
    let reasons = Table::ALL.into_iter().flat_map(all).map(|(reason, _)| reason);
    for reason in reasons.chain(errors) {
        let name = reason.name();
        for spelled in [name.to_string(), name.to_lowercase(), name.replace(['_', ' '], "-")] {
            assert!(Reason::named(&spelled).contains(&reason), "{spelled}");
        }
    }
    for &(code, uapi) in svm::UAPI_SPELLINGS {
        let reason = Reason { table: Table::Svm, code };
        assert!(Reason::named(uapi).contains(&reason), "{uapi}");
        assert_eq!(Reason::named(&format!("SVM_EXIT_{uapi}")), [reason]);
    }
}

#[test]
fn a_prefix_says_which_table() {
    let (vmx, svm) = (Reason::hardware(1, 12), Reason::hardware(2, 0x78));
    let userspace = Reason::userspace(5, 0);
    assert_eq!(Reason::named(" hlt"), [vmx, svm, userspace]);
    assert_eq!(Reason::named("EXIT_REASON_HLT"), [vmx]);
    assert_eq!(Reason::named("svm-exit-hlt"), [svm]);
    assert_eq!(Reason::named("Kvm_Exit_Hlt"), [userspace]);
    assert_eq!(Reason::named("SVM_VMGEXIT_AP_HLT_LOOP"), [Reason::hardware(2, 0x8000_0004)]);
    assert_eq!(Reason::named("de excp"), [Reason::hardware(2, 0x40)]);
    for nothing in ["", "KVM_EXIT_", "unknown(77)", "error(0)", "error(-4)", "error(x)", "HL"] {
        assert_eq!(Reason::named(nothing), [], "{nothing}");
    }
}

#[test]
fn a_failed_run_hides_the_stale_reason() {
    let name = |reason, errno| Reason::userspace(reason, errno).name();
    assert_eq!(name(2, 0), "KVM_EXIT_IO");
    assert_eq!(name(43, 0), "KVM_EXIT_SNP_REQ_CERTS");
    assert_eq!(name(10, -libc::EINTR), "restart");
    assert_eq!(name(2, -libc::EAGAIN), "error(EAGAIN)");
    assert_eq!(name(2, -libc::EFAULT), "error(EFAULT)");
    assert_eq!(name(2, -512), "error(512)");
    assert_eq!(name(39, -libc::EFAULT), "KVM_EXIT_MEMORY_FAULT");
    assert_eq!(name(39, -libc::EHWPOISON), "KVM_EXIT_MEMORY_FAULT");
    assert_eq!(name(39, -libc::EINTR), "restart");
    assert_eq!(name(99, 0), "unknown(99)");
    assert_eq!(name(0x8000_0000, 0), "unknown(2147483648)");
    assert_eq!(Reason::userspace(2, -libc::EIO), Reason::userspace(6, -libc::EIO));
}

#[test]
fn only_idling_is_a_halt() {
    let halts: Vec<_> = Table::ALL.into_iter().flat_map(all).filter(|(r, _)| r.is_halt()).collect();
    let names: Vec<_> = halts.iter().map(|(_, name)| *name).collect();
    assert_eq!(
        names,
        [
            "HLT",
            "hlt",
            "idle-halt",
            "vmgexit_ap_hlt_loop",
            "KVM_EXIT_HLT",
            "KVM_EXIT_AP_RESET_HOLD"
        ]
    );
    assert!(!Reason::userspace(5, -libc::EINTR).is_halt());
    assert!(Reason::hardware(1, 0x0400_000c).is_halt());
}

#[test]
fn reasons_are_of_two_kinds() {
    assert_eq!(Reason::hardware(1, 0).kind(), "hardware");
    assert_eq!(Reason::hardware(2, 0).kind(), "hardware");
    assert_eq!(Reason::userspace(0, 0).kind(), "userspace");
}

#[test]
fn hypercalls_have_names() {
    assert_eq!(hypercall_name(0), None);
    assert_eq!(hypercall_name(5), Some("KICK_CPU"));
    assert_eq!(hypercall_name(12), Some("MAP_GPA_RANGE"));
    assert_eq!(hypercall_name(13), None);
    assert_eq!(hypercall_name(u64::MAX), None);
}
