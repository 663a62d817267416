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
        let names: Vec<String> = addresses.iter().enumerate().map(name).rev().collect();
        printable(&names.join(";"))
    }
}
