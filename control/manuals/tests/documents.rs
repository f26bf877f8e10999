//! The documents: the reference is as `overlay-manuals` writes it, and every link leads somewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

const MANUALS: &str = env!("CARGO_BIN_EXE_overlay-manuals");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Holds a document of the reference against the one that is written now.
fn is_up_to_date(name: &str) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let output = Command::new(MANUALS).arg("--reference").arg(directory.path()).output().expect("run it");
    assert!(output.status.success(), "{output:?}");
    let (kept, written) =
        (read(&root().join("docs/reference").join(name)), read(&directory.path().join(name)));
    let differs = kept.lines().zip(written.lines()).find(|(kept, written)| kept != written);
    assert!(
        kept == written,
        "docs/reference/{name} is not what the code says, first here: {differs:?}\nwrite it anew: make reference"
    );
}

#[test]
fn every_flag_is_explained_as_the_program_does() {
    is_up_to_date("flags.md");
}

#[test]
fn every_metric_is_explained_as_the_program_does() {
    is_up_to_date("metrics.md");
}

#[test]
fn every_drop_reason_is_explained_as_the_program_does() {
    is_up_to_date("drop-reasons.md");
}

/// All documents of the repository.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).expect("a directory").map(|entry| entry.expect("an entry")) {
            let (path, name) = (entry.path(), entry.file_name().into_string().expect("a name"));
            if name == "target" || name.starts_with('.') {
                continue;
            }
            if entry.file_type().expect("a type").is_dir() {
                directories.push(path);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    found
}

/// The lines of a document that are not in blocks of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        is_code ^= fence;
        !is_code && !fence
    })
}

/// What `#…` in a link may name: the headings, as GitHub makes anchors of them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter_map(|line| line.strip_prefix('#'));
    let anchor = |heading: &str| {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// `path` without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        if component == Component::ParentDir { _ = plain.pop() } else { plain.push(component) }
    }
    plain
}

#[test]
fn every_link_leads_somewhere() {
    let mut wrong = Vec::new();
    let documents = documents();
    assert!(documents.len() > 10, "{documents:?}");
    for document in documents {
        let text = read(&document);
        let prose: Vec<&str> = prose(&text).collect();
        for link in prose.join("\n").split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            let link = link.0;
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => document.clone(),
                file => plain(&document.parent().expect("a directory").join(file)),
            };
            let leads = match anchor {
                "" => target.exists(),
                anchor => target.is_file() && anchors(&read(&target)).contains(anchor),
            };
            if !leads {
                wrong.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Paths of source that documents name begin at the root, and are there.
#[test]
fn every_path_of_source_is_there() {
    let mut wrong = Vec::new();
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/modules.md"] {
        let text = read(&root().join(name));
        let paths = text.split('`').skip(1).step_by(2).filter(|path| {
            let begins = ["overlay/", "control/", "integration/", "bench/", "deploy/", "docs/"];
            begins.iter().any(|root| path.starts_with(root)) && !path.contains([' ', '*', '…', '<'])
        });
        wrong.extend(paths.filter(|path| !root().join(path).exists()).map(|path| format!("{name}: {path}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
