//! Where metrics are written to: a file that is replaced as a whole, or standard output.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tempfile::NamedTempFile;

use crate::session::usage;

/// Where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output: one text after another.
    Stdout,
    /// A file, which has the last one.
    File(PathBuf),
}

impl Target {
    /// What the user means, found to be possible; a usage error if it is not.
    pub fn find(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        let cannot = |why: &dyn std::fmt::Display| {
            usage(format!("cannot write `{}`: {why}", path.display()))
        };
        // A link stays where it is: the file that it leads to is replaced.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        // What is not a file would be replaced by one: /dev/null, for example.
        if fs::metadata(&path).is_ok_and(|found| !found.is_file()) {
            return Err(cannot(&"it is not a file, and - is standard output"));
        }
        beside(&path).map_err(|err| cannot(&err))?;
        Ok(Self::File(path))
    }

    /// Writes a text; readers of a file see this one or the one before, never a part.
    pub fn write(&self, text: &str) -> Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(text.as_bytes())?;
                Ok(out.flush()?)
            }
            Self::File(path) => {
                replace(path, text).with_context(|| format!("failed to write `{}`", path.display()))
            }
        }
    }
}

fn replace(path: &Path, text: &str) -> io::Result<()> {
    let mut file = beside(path)?;
    file.write_all(text.as_bytes())?;
    // Whatever the umask: others are to read it.
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.persist(path)?;
    Ok(())
}

/// A new file in the same directory, whose name nobody reads: the collector wants `.prom`.
fn beside(path: &Path) -> io::Result<NamedTempFile> {
    let directory = path.parent().filter(|parent| *parent != Path::new(""));
    tempfile::Builder::new().suffix(".tmp").tempfile_in(directory.unwrap_or(Path::new(".")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(path: &Path) -> String {
        Target::find(path).unwrap_err().to_string()
    }

    #[test]
    fn only_files_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refused(dir.path()).ends_with("it is not a file, and - is standard output"));
        assert!(refused(Path::new("/dev/null")).contains("cannot write `/dev/null`"));
        assert!(refused(&dir.path().join("no/such/x.prom")).contains("No such file"));
        assert_eq!(Target::find(Path::new("-")).unwrap(), Target::Stdout);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left of the check");
    }

    #[test]
    fn a_link_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("x.prom"), dir.path().join("link.prom"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        Target::find(&link).unwrap().write("new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    }
}
