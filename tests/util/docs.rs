//! A program's manual and completions against its own command line, as unit tests of each program have it: OPTIONS of
//! the page and the completions are written from the definitions that `--help` is printed from (`make docs`).
//!
//! Our pages are mdoc(7), which says what a word is; clap_mangen writes man(7), which says how it looks, and one page
//! cannot be both.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process;

use clap::builder::PossibleValue;
use clap::{Arg, ArgAction, Command};
use clap_complete::{Shell, generate};

/// Lines of a page's prose are no longer than this, where words allow.
const WIDTH: usize = 110;

/// The page and the completions of `program`, which is installed as `installed`, say what `command` does. With
/// UPDATE_DOCS in the environment they are made to.
pub(crate) fn check(command: Command, program: &str, installed: &'static str) {
    let mut unbuilt = command.clone().name(installed);
    let mut command = command;
    command.build();
    let page_path = top().join(format!("man/{program}.8"));
    let page = fs::read_to_string(&page_path).unwrap();
    let groups = groups(&command, &titles(&page));
    compare(&page_path, &with_groups(&page, &groups));
    let page = fs::read_to_string(&page_path).unwrap();
    for group in &groups {
        assert!(page.contains(&group.mdoc), "man/{program}.8 has no `{}`", group.name);
    }
    assert_synopsis(&command, &page);
    assert_examples(&command, &page);

    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let file = match shell {
            Shell::Bash => format!("bash/{installed}"),
            Shell::Zsh => format!("zsh/_{installed}"),
            _ => format!("fish/{installed}.fish"),
        };
        let mut script = Vec::new();
        generate(shell, &mut unbuilt, installed, &mut script);
        let script = labelled(&String::from_utf8(script).unwrap(), installed);
        let path = top().join("packaging/completions").join(file);
        compare(&path, &script);
        if shell == Shell::Bash {
            for subcommand in [None].into_iter().chain(command.get_subcommands().map(Some)) {
                assert_bash_completes(&path, installed, &command, subcommand);
            }
        }
    }
}

/// The completions of a program with a hyphen in its name, which clap_complete 4.6 separates in some places as if there
/// were a subcommand, so that bash completes nothing after a real one (clap's issue 6421).
fn labelled(script: &str, installed: &str) -> String {
    script.replace(&installed.replace('-', "__subcmd__"), &installed.replace('-', "__"))
}

/// A script for bash: sources $1, and completes the words after that as a terminal would have it done.
const COMPLETE: &str = r#"
. "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
function=$(complete -p "$1")
function=${function#* -F }
${function%% *} "$1" "${@: -1}" "${@: -2:1}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

/// Sourced by bash, the script completes the options of a program or of its subcommand, and the values of each.
fn assert_bash_completes(
    script: &Path,
    installed: &str,
    program: &Command,
    subcommand: Option<&Command>,
) {
    let words: Vec<&str> =
        [installed].into_iter().chain(subcommand.map(Command::get_name)).collect();
    let complete = |last: &[&str]| -> Vec<String> {
        let words = [&words[..], last].concat();
        let mut bash = process::Command::new("bash");
        let output = bash.args(["-c", COMPLETE, "bash"]).arg(script).args(words).output().unwrap();
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
    };
    let options = complete(&["--"]);
    for arg in subcommand.unwrap_or(program).get_arguments().filter(|arg| !arg.is_hide_set()) {
        let Some(long) = arg.get_long() else { continue };
        let long = format!("--{long}");
        assert!(options.contains(&long), "{words:?} {long}: {options:?}");
        let values = arg.get_possible_values();
        let values =
            values.iter().filter(|value| !value.is_hide_set()).map(PossibleValue::get_name);
        let values: Vec<_> = values.collect();
        if arg.get_action().takes_values() && !values.is_empty() {
            assert_eq!(complete(&[&long, ""]), values, "{words:?} {long}");
        }
    }
}

/// The top of the sources: unit tests run in the directory of their package.
fn top() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    match manifest.join("man").exists() {
        true => manifest.to_owned(),
        false => manifest.parent().unwrap().to_owned(),
    }
}

/// A file holds this text; or, if so asked for, it does from now on.
fn compare(path: &Path, text: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        return;
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    let differs = found.lines().zip(text.lines()).find(|(found, wanted)| found != wanted);
    assert!(
        found == text,
        "`{}` is not what --help says (`make docs` writes it anew): {differs:?}",
        path.display()
    );
}

/// The options that one heading of `--help` lists.
struct Group {
    /// What the marks in the page name it by: the subcommand, if any, and the heading, if any.
    name: String,
    mdoc: String,
}

fn groups(command: &Command, titles: &[String]) -> Vec<Group> {
    let mut groups = Vec::new();
    for command in [command].into_iter().chain(command.get_subcommands()) {
        let mut headings: Vec<Option<&str>> = vec![];
        let args = || command.get_arguments().filter(|arg| !arg.is_hide_set());
        for arg in
            args().filter(|arg| !headings.contains(&arg.get_help_heading())).collect::<Vec<_>>()
        {
            if !headings.contains(&arg.get_help_heading()) {
                headings.push(arg.get_help_heading());
            }
        }
        for heading in headings {
            let args = args().filter(|arg| arg.get_help_heading() == heading);
            let items: String = args.map(|arg| item(command, arg, titles)).collect();
            groups.push(Group {
                name: [command.get_name(), heading.unwrap_or("Options")].join(" "),
                mdoc: format!(".Bl -tag -width Ds\n{items}.El\n"),
            });
        }
    }
    groups
}

const BEGIN: &str = ".\\\" Written by make docs: ";
const END: &str = ".\\\" End.\n";

/// The page with what is between its marks written anew.
fn with_groups(page: &str, groups: &[Group]) -> String {
    let mut text = String::new();
    let mut parts = page.split_inclusive('\n');
    while let Some(line) = parts.next() {
        text.push_str(line);
        let Some(name) = line.strip_prefix(BEGIN) else {
            continue;
        };
        let group = groups.iter().find(|group| group.name == name.trim());
        let group = group.unwrap_or_else(|| panic!("no options are `{}`", name.trim()));
        text.push_str(&group.mdoc);
        assert!(parts.any(|line| line == END), "`{line}` has no end");
        text.push_str(END);
    }
    text
}

/// One option, with what `--help` says of it.
fn item(command: &Command, arg: &Arg, titles: &[String]) -> String {
    let names = arg.get_value_names().unwrap_or_default().iter().map(|name| name.as_str());
    let value = names.collect::<Vec<_>>().join(" ");
    let flags =
        [arg.get_short().map(String::from), arg.get_long().map(|long| dashed(&format!("-{long}")))];
    let mut tag = flags
        .into_iter()
        .flatten()
        .map(|flag| format!("Fl {flag}"))
        .collect::<Vec<_>>()
        .join(" , ");
    if arg.get_action().takes_values() {
        let optional = arg.get_num_args().is_some_and(|range| range.min_values() == 0);
        match (arg.is_positional(), optional) {
            (true, _) => _ = write!(tag, "Ar {value}"),
            (false, true) => _ = write!(tag, " Ns Op = Ns Ar {value}"),
            (false, false) => _ = write!(tag, " Ar {value}"),
        }
    }
    let mut text = format!(".It {tag}\n");
    let help = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let prose = Prose { command, arg, titles };
    for paragraph in help.split("\n\n").filter(|paragraph| !paragraph.is_empty()) {
        prose.write(&mut text, paragraph);
    }
    if let ([default], false) =
        (arg.get_default_values(), matches!(arg.get_action(), ArgAction::SetTrue))
    {
        let default = default.to_string_lossy();
        prose.write(&mut text, &format!("The default is {default}"));
    }
    let values: Vec<PossibleValue> = arg.get_possible_values();
    if !values.is_empty() && arg.get_action().takes_values() {
        let widest =
            values.iter().map(PossibleValue::get_name).max_by_key(|name| name.len()).unwrap();
        _ = writeln!(text, ".Bl -tag -width {widest}");
        for value in &values {
            _ = writeln!(text, ".It Cm {}", value.get_name());
            let help =
                value.get_help().unwrap_or_else(|| panic!("`{}` says nothing", value.get_name()));
            prose.write(&mut text, &help.to_string());
        }
        text.push_str(".El\n");
    }
    text
}

/// Turns the plain text of `--help` into mdoc: what is an option, a value, a path or a section is marked as such.
struct Prose<'a> {
    command: &'a Command,
    arg: &'a Arg,
    titles: &'a [String],
}

impl Prose<'_> {
    /// A paragraph, each sentence on a line of its own.
    fn write(&self, text: &mut String, paragraph: &str) {
        let mut line = String::new();
        let mut words = paragraph.split_whitespace().peekable();
        let mut option: Option<&Arg> = None;
        while let Some(word) = words.next() {
            let last = words.peek().is_none();
            let full = match last && !word.ends_with(['.', ':', '?']) {
                true => format!("{word}."),
                false => word.to_owned(),
            };
            let (open, core, close) = delimited(&full);
            let macros = self.macros(core, option);
            option = if close.is_empty() { self.option(core) } else { None };
            match macros {
                Some(macros) => {
                    flush(text, &mut line);
                    if macros.starts_with("Cm") {
                        // On the line of its option.
                        text.truncate(text.trim_end().len());
                        _ = writeln!(text, " {macros}{}", spaced(close));
                        continue;
                    }
                    let open = if open.is_empty() { String::new() } else { format!("Pf {open} ") };
                    _ = writeln!(text, ".{open}{macros}{}", spaced(close));
                }
                None => {
                    if !line.is_empty() && line.len() + full.len() > WIDTH {
                        flush(text, &mut line);
                    }
                    line += if line.is_empty() { "" } else { " " };
                    line += &full.replace('\\', "\\e");
                    if close.starts_with(['.', '?']) {
                        flush(text, &mut line);
                    }
                }
            }
        }
        flush(text, &mut line);
    }

    /// The macros for a word that is more than a word; `option` is the one before it.
    fn macros(&self, word: &str, option: Option<&Arg>) -> Option<String> {
        let value_of = |arg: &Arg| {
            let known = arg.get_possible_values();
            word.split(',').all(|part| known.iter().any(|value| value.get_name() == part))
        };
        if let Some((flag, value)) = word.split_once('=').filter(|(flag, _)| flag.starts_with("--"))
        {
            return Some(format!("Fl {} Ns = Ns Cm {value}", dashed(&flag[1..])));
        }
        let flag = word
            .strip_prefix('-')
            .filter(|flag| flag.starts_with(|c: char| c == '-' || c.is_alphabetic()));
        if let Some(flag) = flag {
            return Some(format!("Fl {}", dashed(flag)));
        }
        if option.is_some_and(value_of) {
            return Some(format!("Cm {word}"));
        }
        if word.starts_with('/') {
            return Some(format!("Pa {word}"));
        }
        if self.titles.iter().any(|title| title == word) {
            return Some(format!("Sx {word}"));
        }
        // What this option or the command itself takes.
        let mut args = self.command.get_positionals().chain([self.arg]);
        let is_value = args.any(|arg| {
            let names = arg.get_value_names().unwrap_or_default();
            arg.get_action().takes_values() && names.iter().any(|name| name == word)
        });
        is_value.then(|| format!("Ar {word}"))
    }

    fn option(&self, word: &str) -> Option<&Arg> {
        let long = word.strip_prefix("--");
        let is_it = |arg: &&Arg| {
            arg.get_long() == long && long.is_some()
                || arg.get_short().is_some_and(|short| word == format!("-{short}"))
        };
        self.command.get_arguments().find(is_it)
    }
}

/// `-long` as a macro's argument: a minus, not a hyphen.
fn dashed(flag: &str) -> String {
    flag.replace('-', "\\-")
}

/// A word without the punctuation around it.
fn delimited(word: &str) -> (&str, &str, &str) {
    let rest = word.trim_start_matches('(');
    let core = rest.trim_end_matches(['.', ',', ';', ':', '?', ')']);
    (&word[..word.len() - rest.len()], core, &rest[core.len()..])
}

/// Punctuation as a macro's arguments.
fn spaced(close: &str) -> String {
    close.chars().map(|c| format!(" {c}")).collect()
}

fn flush(text: &mut String, line: &mut String) {
    if !line.is_empty() {
        text.push_str(line);
        text.push('\n');
        line.clear();
    }
}

/// The titles of a page's sections.
fn titles(page: &str) -> Vec<String> {
    page.lines().filter_map(|line| line.strip_prefix(".Sh ")).map(str::to_owned).collect()
}

/// A section of a page.
fn section<'a>(page: &'a str, title: &str) -> &'a str {
    let (_, rest) =
        page.split_once(&format!("\n.Sh {title}\n")).unwrap_or_else(|| panic!("no {title}"));
    rest.split("\n.Sh ").next().unwrap()
}

/// SYNOPSIS names every option, by one of its names.
fn assert_synopsis(command: &Command, page: &str) {
    let synopsis = section(page, "SYNOPSIS");
    let mut words = synopsis.split_whitespace().peekable();
    let mut named = Vec::new();
    while let Some(word) = words.next() {
        if let ("Fl" | ".Fl", Some(flag)) = (word, words.peek()) {
            named.push(flag.replace('\\', ""));
        }
    }
    for command in [command].into_iter().chain(command.get_subcommands()) {
        for arg in command.get_arguments().filter(|arg| !arg.is_positional() && !arg.is_hide_set())
        {
            let short = arg.get_short().is_some_and(|short| {
                named.iter().any(|flag| !flag.starts_with('-') && flag.contains(short))
            });
            let long = arg.get_long().map(|long| format!("-{long}"));
            // These go without saying.
            let known = short
                || long.is_some_and(|long| named.contains(&long))
                || arg.get_id() == "help"
                || arg.get_id() == "version";
            assert!(known, "SYNOPSIS does not name {arg}");
        }
    }
}

/// What `--help` ends with is in EXAMPLES, and all of it is understood.
fn assert_examples(command: &Command, page: &str) {
    let help = command
        .get_after_long_help()
        .unwrap_or_else(|| panic!("--help has no examples"))
        .to_string();
    let page_examples = section(page, "EXAMPLES");
    let start = format!("{} ", command.get_name());
    let examples: Vec<&str> = page_examples
        .lines()
        .filter_map(|line| line.strip_prefix(".Dl # ").or(line.strip_prefix(".Dl $ ")))
        .filter(|line| line.starts_with(&start))
        .collect();
    for line in help.lines().map(str::trim).filter(|line| line.starts_with(&start)) {
        let example = line.split("  ").next().unwrap();
        assert!(examples.contains(&example), "EXAMPLES does not have `{example}`");
    }
    assert!(!examples.is_empty());
    for example in examples {
        let words = example.split(['|', '>']).next().unwrap().split_whitespace();
        if let Err(err) = command.clone().try_get_matches_from(words) {
            panic!("`{example}`: {err}");
        }
    }
}
