//! What a guest writes to its serial console: kept in a file, its end in memory, and looked through for the line that says
//! that the guest is ready.

use std::fs::File;
use std::io::{self, Write};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use super::tail::Tail;
use crate::ns::ns;
use crate::record::VcpuPage;

/// The console of a guest that runs.
pub(super) struct Console<'a> {
    pub(super) file: Option<File>,
    pub(super) tail: &'a Tail,
    /// Where to say when the guest became ready.
    pub(super) page: &'a VcpuPage,
    pub(super) ready: Ready,
    /// When the guest began to run.
    pub(super) started: Instant,
}

impl Write for Console<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // One by one as the guest writes them, so that a prompt, which ends no line, is there at once.
        self.file.as_mut().map_or(Ok(()), |file| file.write_all(bytes))?;
        for byte in bytes {
            self.tail.push(*byte);
            if self.ready.comes_with(*byte) {
                let boot_ns = ns(self.started.elapsed());
                self.page.boot_ns.store(boot_ns.max(1), Relaxed);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits for a part of a line.
pub(super) struct Ready {
    wanted: Vec<u8>,
    /// The line so far, or its end.
    line: Vec<u8>,
    has_come: bool,
}

impl Ready {
    /// A line longer than this need not be known from its beginning.
    const LINE_BYTES: usize = 4096;

    pub(super) fn new(wanted: &str) -> Self {
        Self { wanted: wanted.into(), line: Vec::new(), has_come: false }
    }

    /// Whether this byte completes it, for the first time.
    fn comes_with(&mut self, byte: u8) -> bool {
        if self.has_come {
            return false;
        }
        if byte == b'\n' {
            self.line.clear();
        }
        if self.line.len() >= Self::LINE_BYTES + self.wanted.len() {
            self.line.drain(..Self::LINE_BYTES);
        }
        self.line.push(byte);
        self.has_come = self.line.ends_with(&self.wanted);
        self.has_come
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// After how many bytes it comes, each time.
    fn comes(wanted: &str, text: &str) -> Vec<usize> {
        let mut ready = Ready::new(wanted);
        (1..)
            .zip(text.bytes())
            .filter(|(_, byte)| ready.comes_with(*byte))
            .map(|(n, _)| n)
            .collect()
    }

    #[test]
    fn a_line_comes_once_and_as_soon_as_it_is_there() {
        assert_eq!(comes("as init", "[ 1.0] Run /init as init process\r\nas init"), [24]);
        assert_eq!(comes("login: ", "host login: "), [12]);
        assert_eq!(comes("aab", "aaab"), [4]);
        assert_eq!(comes("ab", "a\nb"), [0; 0]);
        let long = "x".repeat(10_007) + "login:";
        assert_eq!(comes("login:", &long), [10_013]);
    }
}
