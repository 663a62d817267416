//! `--stacks`: where in the kernel vCPUs were blocked, in words.

use std::collections::HashMap;
use std::io::Write;

use anyhow::Result;
use blazesym::symbolize::source::{Kernel, Source};
use blazesym::symbolize::{Input, Symbolizer};
use common::output::printable;

/// A place in the kernel where a vCPU has been blocked, since the program's start.
#[derive(Clone, Debug)]
pub struct Block {
    /// The vCPU, by its process's start and its thread, and the stack's number.
    pub id: (u64, i32, i32),
    /// The stack, the innermost function first; empty if it could not be had.
    pub addresses: Vec<u64>,
    /// How often.
    pub count: u64,
    /// For how long, in nanoseconds.
    pub ns: u64,
}

/// Turns addresses into functions' names, and remembers what was there before.
pub struct Stacks {
    symbolizer: Symbolizer,
    /// How many to show.
    top: usize,
    earlier: HashMap<(u64, i32, i32), (u64, u64)>,
}

impl Stacks {
    /// For the `top` stacks at which vCPUs were blocked the longest.
    pub fn new(top: usize) -> Self {
        Self { symbolizer: Symbolizer::new(), top, earlier: HashMap::new() }
    }

    /// Writes folded stacks, the outermost function first, and for how many microseconds vCPUs were blocked there
    /// since the last time: what flame graphs are made from.
    pub fn write(&mut self, out: &mut dyn Write, blocks: &[Block]) -> Result<()> {
        let mut folded: HashMap<String, u64> = HashMap::new();
        for block in blocks {
            let now = (block.count, block.ns);
            let (_, before_ns) = self.earlier.insert(block.id, now).unwrap_or_default();
            let ns = block.ns - before_ns.min(block.ns);
            if ns > 0 {
                *folded.entry(self.fold(&block.addresses)).or_default() += ns;
            }
        }
        let mut folded: Vec<_> = folded.into_iter().collect();
        folded.sort_by(|(a, a_ns), (b, b_ns)| b_ns.cmp(a_ns).then_with(|| a.cmp(b)));
        for (line, ns) in folded.iter().take(self.top) {
            writeln!(out, "{line} {}", ns / 1_000)?;
        }
        Ok(())
    }

    fn fold(&self, addresses: &[u64]) -> String {
        if addresses.is_empty() {
            return "[no_stack]".to_owned();
        }
        let source = Source::Kernel(Kernel::default());
        let symbols = self.symbolizer.symbolize(&source, Input::AbsAddr(addresses));
        let symbols = symbols.unwrap_or_default();
        let name = |(i, address): (usize, &u64)| match symbols.get(i).and_then(|s| s.as_sym()) {
            Some(symbol) => symbol.name.replace([';', ' '], "_"),
            None => format!("{address:#x}"),
        };
        let names: Vec<String> = addresses.iter().enumerate().map(name).collect();
        // Inside of it is what the tracepoint calls: that is us.
        let own = names.iter().position(|name| name.starts_with("__schedule")).unwrap_or(0);
        let outermost_first: Vec<String> = names.into_iter().skip(own).rev().collect();
        printable(&outermost_first.join(";"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The addresses are no kernel's, and remain numbers.
    fn block(tid: i32, stack: i32, addresses: &[u64], ns: u64) -> Block {
        Block { id: (1, tid, stack), addresses: addresses.to_vec(), count: 1, ns }
    }

    fn written(stacks: &mut Stacks, blocks: &[Block]) -> String {
        let mut out = Vec::new();
        stacks.write(&mut out, blocks).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn vcpus_blocked_at_one_place_are_one_and_the_worst_is_first() {
        let blocks = [
            block(7, 1, &[0x11, 0x22], 5_000),
            block(8, 1, &[0x11, 0x22], 7_000),
            block(7, 2, &[0x33], 90_000),
            block(7, -14, &[], 1_000),
        ];
        insta::assert_snapshot!(written(&mut Stacks::new(9), &blocks), @r"
        0x33 90
        0x22;0x11 12
        [no_stack] 1
        ");
        assert_eq!(written(&mut Stacks::new(1), &blocks), "0x33 90\n");
    }

    #[test]
    fn only_what_is_new_is_counted() {
        let mut stacks = Stacks::new(9);
        let at = |a_ns, b_ns| [block(7, 1, &[0x11], a_ns), block(7, 2, &[0x22], b_ns)];
        written(&mut stacks, &at(5_000, 8_000));
        assert_eq!(written(&mut stacks, &at(9_000, 8_000)), "0x11 4\n");
        // Another vCPU's first time at the same place is all new.
        let blocks = [block(8, 2, &[0x22], 3_000)];
        assert_eq!(written(&mut stacks, &blocks), "0x22 3\n");
    }
}
