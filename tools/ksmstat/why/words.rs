//! How an answer says numbers: of pages and bytes, of errors, of time. Pure.

use super::scan::Bound;

/// What stands before a number of pages.
pub fn prefix(bound: Bound) -> &'static str {
    match bound {
        Bound::Exactly => "",
        Bound::About => "about ",
        Bound::AtLeast => "at least ",
    }
}

/// The same for programs.
pub fn bound_id(bound: Bound) -> &'static str {
    match bound {
        Bound::Exactly => "exactly",
        Bound::About => "about",
        Bound::AtLeast => "at_least",
    }
}

/// `7 of its 9 pages`, `all its 9 pages`; `its` is `all` for those of all processes.
pub fn so_many(number: u64, its: &str, of: u64, what: &str) -> String {
    match (number == of, its) {
        (false, _) => format!("{number} of {its} {of} {what}"),
        (true, "all") => format!("all {of} {what}"),
        (true, _) => format!("all {its} {of} {what}"),
    }
}

/// As errno(3) has it. `try_to_merge_with_ksm_page` knows only the first.
pub fn error_name(error: i32) -> String {
    match error {
        libc::EFAULT => "EFAULT".to_owned(),
        other => format!("error {other}"),
    }
}

/// Begins a sentence.
pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

/// `64.0 MiB`
pub fn size(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64 / 1_024.0, "KiB");
    for larger in ["MiB", "GiB", "TiB"] {
        if value < 1_000.0 {
            break;
        }
        (value, unit) = (value / 1_024.0, larger);
    }
    let decimals = usize::from(unit != "KiB");
    format!("{value:.decimals$} {unit}")
}

/// `3.3 s`, `41 min`, `5.0 h`
pub fn seconds(seconds: f64) -> String {
    match seconds {
        0.0..120.0 => format!("{seconds:.1} s"),
        120.0..7_200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_short() {
        let sizes = [4_096, 999 * 1_024, 1_000 * 1_024, 64 << 20, 1_023 << 20, 5 << 40];
        let texts = ["4 KiB", "999 KiB", "1.0 MiB", "64.0 MiB", "1.0 GiB", "5.0 TiB"];
        assert_eq!(sizes.map(size), texts);
        let texts = ["0.1 s", "119.9 s", "2 min", "120 min", "2.0 h", "1000.0 h"];
        assert_eq!([0.06, 119.9, 120.0, 7_199.0, 7_200.0, 3.6e6].map(seconds), texts);
    }

    #[test]
    fn all_of_them_are_all() {
        assert_eq!(so_many(7, "its", 9, "pages"), "7 of its 9 pages");
        assert_eq!(so_many(7, "all", 9, "pages"), "7 of all 9 pages");
        assert_eq!(so_many(9, "its", 9, "pages"), "all its 9 pages");
        assert_eq!(so_many(9, "all", 9, "pages"), "all 9 pages");
    }

    #[test]
    fn sentences_begin_with_a_capital() {
        assert_eq!(capital("at least 7"), "At least 7");
        assert_eq!(capital("7 pages"), "7 pages");
        assert_eq!(capital(""), "");
    }
}
