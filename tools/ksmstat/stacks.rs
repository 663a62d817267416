//! `--stacks`: who writes to merged pages, and from where, in words.

use std::collections::HashMap;
use std::io::Write;

use anyhow::Result;
use blazesym::symbolize::source::{Kernel, Process, Source};
use blazesym::symbolize::{Input, Symbolizer};
use common::output::printable;

use crate::processes::ProcessId;

/// Where a process has written to merged pages, since the program's start.
#[derive(Clone, Debug)]
pub struct Place {
    /// The process.
    pub process: ProcessId,
    /// What it is called.
    pub comm: String,
    /// The numbers of its stacks.
    pub stacks: (i32, i32),
    /// In its own code, the innermost function first; empty if it could not be had.
    pub user: Vec<u64>,
    /// In the kernel's.
    pub kernel: Vec<u64>,
    /// How often.
    pub count: u64,
}

type Id = (ProcessId, (i32, i32));

/// Turns addresses into functions' names, and remembers what was there before.
pub struct Stacks {
    symbolizer: Symbolizer,
    /// How many to show.
    top: usize,
    /// What has been folded already: a process may be gone when it is asked for again.
    folded: HashMap<Id, String>,
    earlier: HashMap<Id, u64>,
}

impl Stacks {
    /// For the `top` places with the most writes.
    pub fn new(top: usize) -> Self {
        Self { symbolizer: Symbolizer::new(), top, folded: HashMap::new(), earlier: HashMap::new() }
    }

    /// Writes folded stacks, the outermost function first, and how often merged pages were written to from there
    /// since the last time: what flame graphs are made from.
    pub fn write(&mut self, out: &mut dyn Write, places: &[Place]) -> Result<()> {
        let mut folded: HashMap<String, u64> = HashMap::new();
        for place in places {
            let id = (place.process, place.stacks);
            let before = self.earlier.insert(id, place.count).unwrap_or_default();
            if place.count > before {
                *folded.entry(self.fold(id, place)).or_default() += place.count - before;
            }
        }
        let mut folded: Vec<_> = folded.into_iter().collect();
        folded.sort_by(|(a, a_count), (b, b_count)| b_count.cmp(a_count).then_with(|| a.cmp(b)));
        for (line, count) in folded.iter().take(self.top) {
            writeln!(out, "{line} {count}")?;
        }
        Ok(())
    }

    fn fold(&mut self, id: Id, place: &Place) -> String {
        if let Some(line) = self.folded.get(&id) {
            return line.clone();
        }
        let pid = place.process.pid.unsigned_abs();
        let user = self.names(&Source::Process(Process::new(pid.into())), &place.user);
        let kernel = self.names(&Source::Kernel(Kernel::default()), &place.kernel);
        let line = fold(&place.comm, user, kernel);
        self.folded.insert(id, line.clone());
        line
    }

    /// The outermost first. What has no name is an address.
    fn names(&self, source: &Source<'_>, addresses: &[u64]) -> Vec<String> {
        let symbols = self.symbolizer.symbolize(source, Input::AbsAddr(addresses));
        let symbols = symbols.unwrap_or_default();
        let name = |(i, address): (usize, &u64)| match symbols.get(i).and_then(|s| s.as_sym()) {
            Some(symbol) => symbol.name.clone().into_owned(),
            None => format!("{address:#x}"),
        };
        addresses.iter().enumerate().map(name).rev().collect()
    }
}

/// The function that copies the page. It has returned to us, and is in the stack on some kernels only.
const COPIER: &str = "do_wp_page";
const OURS: [&str; 2] = ["bpf_trampoline", "bpf_prog"];

fn fold(comm: &str, user: Vec<String>, kernel: Vec<String>) -> String {
    let user = if user.is_empty() { vec!["[no_stack]".to_owned()] } else { user };
    let ours = |name: &String| name == COPIER || OURS.iter().any(|own| name.starts_with(own));
    let end = kernel.iter().position(ours).unwrap_or(kernel.len());
    let kernel = kernel.into_iter().take(end).chain([COPIER.to_owned()]);
    // As flame graphs know the kernel's functions.
    let kernel = kernel.map(|name| name + "_[k]");
    let words = [comm.to_owned()].into_iter().chain(user).chain(kernel);
    let line = words.map(|word| word.replace([';', ' '], "_")).collect::<Vec<_>>().join(";");
    printable(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_forge_frames_and_the_kernels_are_marked() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let kernel = names(&["asm_exc_page_fault", "bpf_trampoline_1", "bpf_prog_1_do_wp_page"]);
        assert_eq!(
            fold("a;b c\n", names(&["main", "write ones"]), kernel),
            "a_b_c?;main;write_ones;asm_exc_page_fault_[k];do_wp_page_[k]"
        );
        assert_eq!(fold("ksmd", vec![], vec![]), "ksmd;[no_stack];do_wp_page_[k]");
    }
}
