//! Compiles every `bpf/STEM.bpf.c` and generates its skeleton, `STEM.skel.rs`, into `OUT_DIR`.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use libbpf_cargo::SkeletonBuilder;

fn main() {
    let sources = Path::new("bpf");
    // Objects name their sources, the same wherever these are.
    let top = env::current_dir().expect("failed to find the current directory");
    let prefix_map = format!("-ffile-prefix-map={}=.", top.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    println!("cargo:rerun-if-changed=bpf");
    for entry in fs::read_dir(sources).expect("failed to read `bpf`") {
        let source = entry.expect("failed to read `bpf`").path();
        let name = source.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let Some(stem) = name.strip_suffix(".bpf.c") else {
            continue;
        };
        // v3 has atomic compare-and-exchange, which exact extremes need.
        SkeletonBuilder::new()
            .source(&source)
            .obj(out.join(format!("{stem}.bpf.o")))
            .clang_args(["-I", "bpf", "-mcpu=v3", "-Wall", "-Werror", &prefix_map])
            .reference_obj(true)
            .build_and_generate(out.join(format!("{stem}.skel.rs")))
            .unwrap_or_else(|err| panic!("failed to build `{}`: {err:?}", source.display()));
    }
}
