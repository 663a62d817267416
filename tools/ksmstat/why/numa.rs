//! On which NUMA nodes mergeable memory lies, out of /proc/PID/numa_maps. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Sums up, by node, the anonymous pages of the mappings that begin at `addresses`. Where a mapping has other pages
/// too (`anon=` is less than the nodes' sum), the nodes' pages count in proportion: which of them are anonymous the
/// kernel does not say.
pub fn node_pages(numa_maps: &str, addresses: &BTreeSet<u64>) -> BTreeMap<u32, u64> {
    let mut sums = BTreeMap::new();
    for line in numa_maps.lines() {
        let mut words = line.split(' ');
        let address = words.next().and_then(|word| u64::from_str_radix(word, 16).ok());
        if !address.is_some_and(|address| addresses.contains(&address)) {
            continue;
        }
        let figures = words.filter_map(|word| {
            let (key, value) = word.split_once('=')?;
            Some((key, value.parse::<u64>().ok()?))
        });
        let (mut anon, mut nodes) = (0, Vec::new());
        for (key, value) in figures {
            match key.strip_prefix('N').and_then(|node| node.parse::<u32>().ok()) {
                Some(node) => nodes.push((node, value)),
                None if key == "anon" => anon = value,
                None => {}
            }
        }
        let all: u64 = nodes.iter().map(|(_, pages)| pages).sum();
        for (node, pages) in nodes {
            *sums.entry(node).or_default() += pages * anon / all.max(1);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_pages_are_summed_up() {
        let numa_maps = "\
7f0000000000 default anon=1009 dirty=1009 N0=1000 N1=9 kernelpagesize_kB=4
7f0010000000 bind:1 anon=101 dirty=101 N1=101 kernelpagesize_kB=4
7f0020000000 default file=/usr/lib/N2=7 mapped=8 N0=8 kernelpagesize_kB=4
7f0030000000 default file=/bin/x anon=4 dirty=4 mapped=8 N0=4 N1=4 kernelpagesize_kB=4
7f0040000000 default
7f0050000000 default anon=13 N0=13
";
        let addresses = [
            0x7f00_0000_0000,
            0x7f00_1000_0000,
            0x7f00_2000_0000,
            0x7f00_3000_0000,
            0x7f00_4000_0000,
        ];
        let pages = node_pages(numa_maps, &addresses.into_iter().collect());
        assert_eq!(pages, [(0, 1_002), (1, 112)].into());
        assert_eq!(node_pages(numa_maps, &BTreeSet::new()), BTreeMap::new());
    }
}
