//! A tool as a user runs it: a process, its output, a signal that ends it.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A row of CSV by column.
pub type CsvRow = HashMap<String, String>;

/// A running tool whose output comes through a pipe, which is always read: a full one would stop the tool.
pub struct Tool {
    child: Running,
    lines: Receiver<String>,
    first: String,
}

/// A process that does not outlive a test that fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// What a tool left.
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

impl Tool {
    /// Starts a tool and waits for its first line: from then on it counts.
    pub fn start(program: &str, args: &[&str]) -> Self {
        Self::start_command(Command::new(program).args(args))
    }

    /// The same with a command that is more than a program and its arguments.
    pub fn start_command(command: &mut Command) -> Self {
        let mut tool = Self::start_command_at_once(command);
        let Ok(first) = tool.lines.recv() else {
            let mut stderr = String::new();
            tool.child.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
            panic!("{command:?} ended at once: {stderr}");
        };
        tool.first = first + "\n";
        tool
    }

    /// Starts a tool that prints nothing before it has something to tell.
    pub fn start_at_once(program: &str, args: &[&str]) -> Self {
        Self::start_command_at_once(Command::new(program).args(args))
    }

    fn start_command_at_once(command: &mut Command) -> Self {
        let piped = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = piped.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            stdout.lines().map_while(Result::ok).try_for_each(|l| sender.send(l))
        });
        Self { child: Running(child), lines, first: String::new() }
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.0.id()
    }

    /// The first line, without its end.
    pub fn first_line(&self) -> &str {
        &self.first
    }

    /// The next line, without its end; empty if there is none.
    pub fn line(&mut self) -> String {
        self.lines.recv().unwrap_or_default()
    }

    /// The next line on standard error, without its end; empty if there is none.
    #[allow(clippy::unbuffered_bytes, reason = "what comes after it is for whoever waits")]
    pub fn complaint(&mut self) -> String {
        let stderr = self.child.0.stderr.as_mut().unwrap();
        let bytes = stderr.bytes().map_while(Result::ok).take_while(|&byte| byte != b'\n');
        String::from_utf8(bytes.collect()).unwrap()
    }

    /// Sends a signal and collects what is left.
    pub fn end(self, signal: i32) -> Ended {
        // SAFETY: a plain system call; the child has not been waited for, so the PID is its own.
        assert_eq!(unsafe { libc::kill(self.child.0.id() as i32, signal) }, 0);
        self.wait()
    }

    /// Collects what is left when the tool ends by itself, in good time.
    pub fn wait(mut self) -> Ended {
        let mut stdout = self.first;
        for line in self.lines {
            stdout.extend([line.as_str(), "\n"]);
        }
        let mut stderr = String::new();
        self.child.0.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            if let Some(status) = self.child.0.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "the tool does not end");
            thread::sleep(Duration::from_millis(5));
        };
        Ended { status, stdout, stderr }
    }
}

impl Ended {
    /// The rows of CSV output, after a good end.
    pub fn rows(&self) -> Vec<CsvRow> {
        assert!(self.status.success(), "{}: {}", self.status, self.stderr);
        assert_eq!(self.stderr, "");
        csv_rows(&self.stdout)
    }
}

/// Runs a tool to its end. What should have been refused runs for ever otherwise: it is stopped after 20 s.
pub fn run(program: &str, args: &[&str]) -> Output {
    Command::new("timeout").args(["20", program]).args(args).output().unwrap()
}

/// The tool of that name ended with this status and one line on standard error, which holds `words`.
pub fn assert_refused(name: &str, output: &Output, status: i32, words: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{words}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "one sentence: {stderr}");
    assert!(
        stderr.starts_with(&format!("{name}: ")) && stderr.contains(words),
        "{words}: {stderr}"
    );
    assert!(output.stdout.is_empty());
}

/// The rows of CSV text with a header.
pub fn csv_rows(text: &str) -> Vec<CsvRow> {
    csv::Reader::from_reader(text.as_bytes()).deserialize().map(Result::unwrap).collect()
}

/// The objects of JSON lines, which tools and loadgen's truth are.
pub fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A whole number in a CSV row.
pub fn number(row: &CsvRow, column: &str) -> u64 {
    row[column].parse().unwrap_or_else(|err| panic!("{column} = {:?}: {err}", row[column]))
}

/// The sum of a column.
pub fn total(rows: &[CsvRow], column: &str) -> u64 {
    rows.iter().map(|row| number(row, column)).sum()
}
