//! `--stacks`: where in its VMM a vCPU's thread was when it left KVM_RUN, in words.

use std::collections::HashMap;
use std::io::Write;
use std::iter;

use anyhow::Result;
use blazesym::symbolize::source::{Process, Source};
use blazesym::symbolize::{Input, Symbolizer};
use common::output::printable;

use crate::detail::Detail;
use crate::rows::{Row, VmId};

/// Turns addresses into functions' names, as long as there is a process to ask.
pub struct Stacks {
    symbolizer: Symbolizer,
    /// How many to show.
    top: usize,
    /// Names of a stack's functions, the outermost first, by process and number.
    names: HashMap<(VmId, u32), Vec<String>>,
}

impl Stacks {
    /// For the `top` most expensive stacks.
    pub fn new(top: usize) -> Self {
        Self { symbolizer: Symbolizer::new(), top, names: HashMap::new() }
    }

    /// Names the stacks that are new. `addresses` is asked for a stack by its number.
    pub fn learn<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a Row>,
        addresses: impl Fn(u32) -> Result<Vec<u64>>,
    ) -> Result<()> {
        for (vm, id) in rows.filter_map(stack_of) {
            if !self.names.contains_key(&(vm, id)) {
                let names = self.symbolize(vm.pid, &addresses(id)?);
                self.names.insert((vm, id), names);
            }
        }
        Ok(())
    }

    /// Writes folded stacks, the outermost function first, and their exits' number: what flame graphs are made
    /// from.
    pub fn write(&self, out: &mut dyn Write, rows: &[Row]) -> Result<()> {
        let mut folded: HashMap<String, (u64, u64)> = HashMap::new();
        for row in rows.iter().filter(|row| row.key.userspace && row.hist.count() > 0) {
            let unknown = vec!["[no_stack]".to_owned()];
            let frames = stack_of(row).and_then(|stack| self.names.get(&stack));
            let reason = row.key.reason.map(|reason| reason.name().into_owned());
            let words = iter::once(&row.vm).chain(frames.unwrap_or(&unknown)).chain(&reason);
            let line = words.map(|word| word.replace([';', ' '], "_")).collect::<Vec<_>>();
            let (count, total_ns) = folded.entry(printable(&line.join(";"))).or_default();
            *count += row.hist.count();
            *total_ns += row.hist.sum_ns();
        }
        let mut folded: Vec<_> = folded.into_iter().collect();
        folded.sort_by(|(a, (_, a_ns)), (b, (_, b_ns))| b_ns.cmp(a_ns).then_with(|| a.cmp(b)));
        for (line, (count, _)) in folded.iter().take(self.top) {
            writeln!(out, "{line} {count}")?;
        }
        Ok(())
    }

    /// The outermost first. What has no name is an address.
    fn symbolize(&self, pid: i32, addresses: &[u64]) -> Vec<String> {
        let source = Source::Process(Process::new(pid.unsigned_abs().into()));
        let symbols = self.symbolizer.symbolize(&source, Input::AbsAddr(addresses));
        let symbols = symbols.unwrap_or_default();
        let name = |(i, address): (usize, &u64)| match symbols.get(i).and_then(|s| s.as_sym()) {
            Some(symbol) => symbol.name.clone().into_owned(),
            None => format!("{address:#x}"),
        };
        addresses.iter().enumerate().map(name).rev().collect()
    }
}

fn stack_of(row: &Row) -> Option<(VmId, u32)> {
    match (row.key.vm, row.key.detail) {
        (Some(vm), Some(Detail::Stack(id))) => Some((vm, id)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use common::exits::Reason;
    use common::hist::Hist;

    use super::*;
    use crate::rows::Key;

    fn row(vm: &str, stack: u32, times_ns: &[u64]) -> Row {
        let key = Key {
            vm: Some(VmId { pid: 4_200, start_boottime_ns: 1 }),
            vcpu: None,
            userspace: true,
            reason: Some(Reason::userspace(2, 0)),
            detail: Some(Detail::Stack(stack)),
        };
        Row { vm: vm.to_owned(), hist: Hist::of(times_ns.iter().copied()), ..Row::new(key) }
    }

    fn written(top: usize, rows: &[Row]) -> String {
        let mut stacks = Stacks::new(top);
        let vm = VmId { pid: 4_200, start_boottime_ns: 1 };
        for (id, names) in
            [(1, ["main", "ioctl"]), (2, ["main", "ioctl"]), (3, ["start thread", "a;b\x1b"])]
        {
            stacks.names.insert((vm, id), names.map(str::to_owned).to_vec());
        }
        let mut out = Vec::new();
        stacks.write(&mut out, rows).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn stacks_of_the_same_functions_are_one_and_the_most_expensive_is_first() {
        let rows = [row("web-1", 1, &[5, 7]), row("web-1", 2, &[5]), row("web-1", 3, &[1_000])];
        insta::assert_snapshot!(written(9, &rows), @r"
        web-1;start_thread;a_b?;KVM_EXIT_IO 1
        web-1;main;ioctl;KVM_EXIT_IO 3
        ");
        assert_eq!(written(1, &rows).lines().count(), 1);
    }

    #[test]
    fn names_cannot_forge_frames_and_unknown_stacks_are_counted() {
        insta::assert_snapshot!(written(9, &[row("a;b c\n", 7, &[1]), row("x", 1, &[])]), @r"
        a_b_c?;[no_stack];KVM_EXIT_IO 1
        ");
    }
}
