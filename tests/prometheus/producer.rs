//! Tools as the systemd unit runs them: as nobody in particular, with the capabilities that it gives them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::util::TempDir;
use crate::util::tool::Tool;
use crate::{name, shipped};

const UNIT: &str = "packaging/systemd/kvm-bpf-tools@.service";

/// The values of a setting in the unit of a tool and in its drop-ins.
pub fn unit_setting(tool: &str, setting: &str) -> Vec<String> {
    let directory = shipped(&format!("packaging/systemd/kvm-bpf-tools@{tool}.service.d"));
    let drop_ins = fs::read_dir(directory).into_iter().flatten().map(|entry| entry.unwrap().path());
    let files = [PathBuf::from(shipped(UNIT))].into_iter().chain(drop_ins);
    let text: String = files.map(|file| fs::read_to_string(file).unwrap()).collect();
    let lines = text.lines().filter_map(|line| line.strip_prefix(setting)?.strip_prefix('='));
    lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

/// A directory where anybody may write, with copies of tools that anybody may run.
pub struct Place(TempDir);

impl Place {
    pub fn new(name: &str) -> Self {
        let place = Self(TempDir::new(name));
        fs::set_permissions(&place.0.0, Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(place.metrics()).unwrap();
        fs::set_permissions(place.metrics(), Permissions::from_mode(0o777)).unwrap();
        place
    }

    /// Where metrics are.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics")
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    /// The file of a tool.
    pub fn file(&self, tool: &str) -> PathBuf {
        self.metrics().join(format!("{}.prom", name(tool)))
    }

    /// Runs a tool that writes its metrics every second.
    pub fn start(&self, tool: &str, args: &[&str]) -> Tool {
        let binary = self.join(name(tool));
        fs::copy(tool, &binary).unwrap();
        let caps = unit_setting(name(tool), "AmbientCapabilities");
        assert_eq!(caps, unit_setting(name(tool), "CapabilityBoundingSet"));
        let caps = caps.iter().map(|cap| format!(",+{}", cap.strip_prefix("CAP_").unwrap()));
        let caps = format!("-all{}", caps.collect::<String>()).to_lowercase();
        let file = self.file(tool);
        let [inheritable, ambient, bounding] =
            ["inh-caps", "ambient-caps", "bounding-set"].map(|set| format!("--{set}={caps}"));
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"];
        let program = [&inheritable, &ambient, &bounding, binary.to_str().unwrap()];
        let metrics = ["--openmetrics", file.to_str().unwrap(), "1"];
        Tool::start_at_once("setpriv", &[&nobody, &program[..], args, &metrics].concat())
    }
}
