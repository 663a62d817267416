//! Families of metrics: as a tool writes them, and as its manual page has them.

use std::collections::{BTreeMap, BTreeSet};

/// A family's type and its labels, but for `le`, the version, and what `--by` asks for.
pub type Families = BTreeMap<String, (String, BTreeSet<String>)>;

/// The families of a text.
pub fn written(text: &str) -> Families {
    let mut families = Families::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').expect("a name and a type");
            families.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
        } else if let Some((name, rest)) = line.split_once('{') {
            let suffixes = ["_bucket", "_sum", "_count"];
            let stem = suffixes.iter().find_map(|suffix| name.strip_suffix(suffix));
            let name = if families.contains_key(name) { name } else { stem.unwrap_or(name) };
            let (labels, _) = rest.rsplit_once('}').expect("labels");
            let names = labels.split("\",").filter_map(|label| Some(label.split_once("=\"")?.0));
            let names = names.filter(|name| !["le", "version"].contains(name));
            let (_, of_family) = families.get_mut(name).expect("TYPE comes first");
            of_family.extend(names.map(str::to_owned));
        }
    }
    families
}

/// A page's section METRICS.
pub fn section(page: &str) -> &str {
    let (_, section) = page.split_once("\n.Sh METRICS\n").expect("a section METRICS");
    section.split("\n.Sh ").next().unwrap_or(section)
}

/// The families that it has: items `.It Va NAME No (TYPE)` or `(TYPE by LABEL, LABEL)`.
pub fn documented(page: &str) -> Families {
    let item = |line: &str| {
        let (name, rest) = line.strip_prefix(".It Va ")?.split_once(" No (")?;
        let rest = rest.strip_suffix(')').expect("a type in brackets");
        let (kind, labels) = rest.split_once(" by ").unwrap_or((rest, ""));
        let labels = labels.split(", ").filter(|label| !label.is_empty()).map(str::to_owned);
        Some((name.to_owned(), (kind.to_owned(), labels.collect())))
    };
    section(page).lines().filter_map(item).collect()
}

/// A page has all families of a text, and no others.
pub fn assert_documented(page: &str, text: &str) {
    assert_eq!(documented(page), written(text));
}
