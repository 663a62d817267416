//! What a process's memory is for KSM, out of /proc/PID/smaps. Pure.

use std::collections::BTreeSet;

use super::facts::{Memory, Refusal, Share};

/// One mapping as smaps has it.
#[derive(Default)]
struct Mapping<'a> {
    start: u64,
    name: &'a str,
    mapped_kib: u64,
    resident_kib: u64,
    anonymous_kib: u64,
    huge_kib: u64,
    hugetlb_kib: u64,
    flags: Vec<&'a str>,
}

impl Mapping<'_> {
    fn has(&self, flags: &[&str]) -> bool {
        self.flags.iter().any(|flag| flags.contains(flag))
    }

    /// Hugetlb first: such memory is most often shared as well, and stays refused when it is not.
    fn refusal(&self) -> Option<Refusal> {
        // fs/proc/task_mmu.c: `show_smap_vma_flags`
        [
            (Refusal::Hugetlb, ["ht"].as_slice()),
            (Refusal::Device, &["pf", "io", "mm", "de"]),
            (Refusal::Shared, &["sh", "ms"]),
            (Refusal::Droppable, &["dp"]),
        ]
        .into_iter()
        .find_map(|(refusal, flags)| self.has(flags).then_some(refusal))
    }

    fn share(&self, used_kib: u64) -> Share {
        Share {
            mappings: 1,
            mapped_bytes: self.mapped_kib * 1_024,
            used_bytes: used_kib * 1_024,
            largest_bytes: used_kib * 1_024,
            largest_name: self.name.to_owned(),
        }
    }

    fn add_to(&self, mappings: &mut Mappings) {
        let memory = &mut mappings.memory;
        if let Some(refusal) = self.refusal() {
            // Huge pages of hugetlbfs are not among the resident ones.
            let share = self.share(self.resident_kib + self.hugetlb_kib);
            memory.refused.entry(refusal).or_default().add(share);
        } else if self.has(&["mg"]) {
            memory.mergeable.add(self.share(self.anonymous_kib));
            memory.huge_bytes += self.huge_kib * 1_024;
            mappings.mergeable_starts.insert(self.start);
        } else {
            memory.unasked.add(self.share(self.anonymous_kib));
        }
    }
}

/// All mappings of a process.
#[derive(Debug, Default)]
pub struct Mappings {
    /// Summed up.
    pub memory: Memory,
    /// Where the mergeable ones begin.
    pub mergeable_starts: BTreeSet<u64>,
}

/// Sums the mappings up.
pub fn mappings(smaps: &str) -> Mappings {
    let (mut mappings, mut mapping) = (Mappings::default(), Mapping::default());
    for line in smaps.lines() {
        let Some((key, value)) = figure(line) else {
            mapping = Mapping { start: start(line), name: name(line), ..Mapping::default() };
            continue;
        };
        let kib = || value.split_whitespace().next()?.parse().ok();
        match key {
            "Size" => mapping.mapped_kib = kib().unwrap_or(0),
            "Rss" => mapping.resident_kib = kib().unwrap_or(0),
            "Anonymous" => mapping.anonymous_kib = kib().unwrap_or(0),
            "AnonHugePages" => mapping.huge_kib = kib().unwrap_or(0),
            "Shared_Hugetlb" | "Private_Hugetlb" => mapping.hugetlb_kib += kib().unwrap_or(0),
            // The last line of each.
            "VmFlags" => {
                mapping.flags = value.split_whitespace().collect();
                mapping.add_to(&mut mappings);
            }
            _ => {}
        }
    }
    mappings
}

/// A mapping's figure. Its first line, `55d0c0a00000-55d0c0a21000 rw-p ...`, is none: it has no colon before its
/// first space.
fn figure(line: &str) -> Option<(&str, &str)> {
    let word = line.split(' ').next().unwrap_or_default();
    let key = word.strip_suffix(':')?;
    Some((key, line.get(word.len()..)?))
}

fn start(line: &str) -> u64 {
    let digits = line.split('-').next().unwrap_or_default();
    u64::from_str_radix(digits, 16).unwrap_or(0)
}

/// The sixth field of a mapping's first line, which may have spaces.
fn name(line: &str) -> &str {
    let mut rest = line;
    for _ in 0..5 {
        rest = rest.trim_start().split_once(' ').map_or("", |(_, rest)| rest);
    }
    rest.trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0c0a00000-55d0c0a21000 rw-p 00000000 00:00 0                          [heap]
Size:                132 kB
Rss:                  20 kB
Anonymous:            16 kB
VmFlags: rd wr mr mw me ac
7f0000000000-7f0004000000 rw-p 00000000 00:00 0
Size:              65536 kB
Rss:               65536 kB
Anonymous:         65532 kB
KSM:                   8 kB
AnonHugePages:      4096 kB
VmFlags: rd wr mr mw me ac mg
7f0010000000-7f0014000000 rw-s 00000000 00:01 2053                       /memfd:qemu ram (deleted)
Size:              65536 kB
Rss:               32768 kB
Anonymous:             0 kB
VmFlags: rd wr sh mr mw me ms
7f0020000000-7f0024000000 r--s 00000000 00:01 2054                       /a
Size:                  4 kB
Rss:                   4 kB
Anonymous:             0 kB
VmFlags: rd mr me ms
7f0030000000-7f0034000000 rw-p 00000000 00:0f 7                          /anon_hugepage (deleted)
Size:               4096 kB
Rss:                   0 kB
Anonymous:             0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:    2048 kB
VmFlags: rd wr mr mw me de ht
7fff00000000-7fff00004000 r--p 00000000 00:00 0                          [vvar]
Size:                 16 kB
Rss:                   0 kB
Anonymous:             0 kB
VmFlags: rd mr pf io de dd
7fff10000000-7fff10004000 rw-p 00000000 00:00 0                          [vvar_x]
Size:                  8 kB
Rss:                   8 kB
Anonymous:             8 kB
VmFlags: rd wr mr mw me dp
";

    fn share(mappings: u64, mapped_kib: u64, used_kib: u64, largest: (u64, &str)) -> Share {
        Share {
            mappings,
            mapped_bytes: mapped_kib * 1_024,
            used_bytes: used_kib * 1_024,
            largest_bytes: largest.0 * 1_024,
            largest_name: largest.1.to_owned(),
        }
    }

    #[test]
    fn mappings_are_told_apart_by_their_flags() {
        let Mappings { memory, mergeable_starts } = mappings(SMAPS);
        assert_eq!(mergeable_starts, [0x7f00_0000_0000].into());
        assert_eq!(memory.mergeable, share(1, 65_536, 65_532, (65_532, "")));
        assert_eq!(memory.huge_bytes, 4_096 * 1_024);
        assert_eq!(memory.unasked, share(1, 132, 16, (16, "[heap]")));
        let refused: Vec<_> = memory.refused.clone().into_iter().collect();
        let hugetlb = share(1, 4_096, 2_048, (2_048, "/anon_hugepage (deleted)"));
        assert_eq!(
            refused,
            [
                (Refusal::Shared, share(2, 65_540, 32_772, (32_768, "/memfd:qemu ram (deleted)"))),
                (Refusal::Hugetlb, hugetlb),
                (Refusal::Device, share(1, 16, 0, (0, ""))),
                (Refusal::Droppable, share(1, 8, 8, (8, "[vvar_x]"))),
            ]
        );
        assert_eq!(memory.used_bytes(), (65_532 + 16 + 32_772 + 2_048 + 8) * 1_024);
    }

    #[test]
    fn a_process_without_memory_has_none() {
        assert_eq!(mappings("").memory, Memory::default());
    }
}
