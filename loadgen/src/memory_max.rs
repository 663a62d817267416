//! The memory limit of a cgroup: how the kernel is told of it, and what it tells when it has killed for it.

use std::fs;
use std::io;
use std::path::Path;

use crate::hierarchy::Version;

/// True if this cgroup can have a memory limit.
pub(crate) fn exists(dir: &Path, version: Version) -> bool {
    dir.join(file(version)).exists()
}

/// Sets the limit.
pub(crate) fn set(dir: &Path, version: Version, bytes: u64) -> io::Result<()> {
    fs::write(dir.join(file(version)), bytes.to_string())
}

/// How many processes the kernel has killed for a limit; none if the cgroup does not know.
pub(crate) fn kills(dir: &Path, version: Version) -> Option<u64> {
    let file = match version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    };
    field(&fs::read_to_string(dir.join(file)).ok()?, "oom_kill")
}

/// True if the limit has ever been reached.
pub(crate) fn was_reached(dir: &Path, version: Version) -> bool {
    let read = |file: &str| fs::read_to_string(dir.join(file)).unwrap_or_default();
    let times = match version {
        Version::V1 => read("memory.failcnt").trim().parse().ok(),
        Version::V2 => field(&read("memory.events"), "max"),
    };
    times.is_some_and(|times| times > 0)
}

fn file(version: Version) -> &'static str {
    match version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    }
}

fn field(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_have_the_same_name_in_both_versions() {
        assert_eq!(field("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", "oom_kill"), Some(3));
        let v2 = "low 0\nhigh 0\nmax 107\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!((field(v2, "oom_kill"), field(v2, "max")), (Some(1), Some(107)));
    }
}
