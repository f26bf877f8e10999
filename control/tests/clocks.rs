//! Nothing that expires goes by the wall clock: one that is set, or jumps, must neither end a lease or a table
//! nor keep it alive. It is for people and programs that are told when something was, and for nothing else.

use std::fs;
use std::path::{Path, PathBuf};

/// Where the wall clock is read: what is shown, exported or captured has a date.
const SHOWN: [&str; 6] = [
    "control/src/diagnose/",
    "control/src/metrics/",
    "control/src/page/",
    "control/src/pcapng.rs",
    "overlay/dataplane/src/capture.rs",
    "overlay/dataplane/src/witness.rs",
];

#[test]
fn time_that_counts_is_monotonic() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let mut files = Vec::new();
    for directory in
        ["control/src", "overlay/dataplane/src", "overlay/simd/src", "overlay/sys/src", "overlay/wire/src"]
    {
        collect(&root.join(directory), &mut files);
    }
    assert!(files.len() > 50, "{files:?}");
    let relative = |file: &PathBuf| file.strip_prefix(root).expect("a file of it").display().to_string();
    let readers: Vec<_> = files
        .iter()
        .filter(|file| fs::read_to_string(file).expect("read a source file").contains("SystemTime"))
        .map(relative)
        .filter(|name| !SHOWN.iter().any(|shown| name.starts_with(shown)))
        .collect();
    assert!(readers.is_empty(), "the wall clock is read in {readers:?}: use Instant for what expires");
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("list sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(&path, files);
        } else {
            files.push(path);
        }
    }
}
