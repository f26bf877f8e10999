//! The manual pages and completions, as `overlay-manuals` writes them: complete, and good for those who read them.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::CommandFactory as _;
use tempfile::TempDir;

const MANUALS: &str = env!("CARGO_BIN_EXE_overlay-manuals");
const OVERLAYD: &str = "overlayd";
const OVERLAYCTL: &str = "overlayctl";

/// A program that is built beside `overlay-manuals`.
fn built(name: &str) -> PathBuf {
    let program = Path::new(MANUALS).with_file_name(name);
    assert!(program.is_file(), "{} is not built: run `cargo build --bins` first", program.display());
    program
}

fn written() -> TempDir {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let output = run(Command::new(MANUALS).arg(directory.path()));
    assert!(output.status.success(), "{output:?}");
    directory
}

fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// What a command prints, which it has to do without a complaint.
fn text(command: &mut Command) -> String {
    let output = run(command);
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && error.is_empty(), "{command:?}: {error}");
    out.into_owned()
}

fn is_installed(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// The long flags that `--help` explains.
fn flags(help: &str) -> BTreeSet<String> {
    let explained = help.lines().map(str::trim_start).filter(|line| line.starts_with('-'));
    let flags = explained.filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")));
    let name = |flag: &str| flag.split(['[', '=', ',']).next().unwrap_or_default().to_owned();
    flags.map(name).collect()
}

fn read(directory: &TempDir, path: &str) -> String {
    fs::read_to_string(directory.path().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn every_flag_is_in_the_pages_and_in_the_completions() {
    let directory = written();
    for (program, subcommand, page, least) in [
        (OVERLAYD, None, "overlayd", 33),
        (OVERLAYCTL, None, "overlayctl", 4),
        (OVERLAYCTL, Some("status"), "overlayctl-status", 5),
        (OVERLAYCTL, Some("top"), "overlayctl-top", 4),
        (OVERLAYCTL, Some("capture"), "overlayctl-capture", 14),
        (OVERLAYCTL, Some("events"), "overlayctl-events", 4),
        (OVERLAYCTL, Some("cleanup"), "overlayctl-cleanup", 5),
    ] {
        let flags = flags(&text(Command::new(built(program)).args(subcommand).arg("--help")));
        assert!(flags.len() >= least, "{page}: only {flags:?}");
        let name = page.split('-').next().unwrap_or_default();
        let page = read(&directory, &format!("man/man8/{page}.8")).replace("\\-", "-");
        let bash = read(&directory, &format!("bash-completion/completions/{name}"));
        let zsh = read(&directory, &format!("zsh/site-functions/_{name}"));
        let fish = read(&directory, &format!("fish/vendor_completions.d/{name}.fish"));
        for flag in flags {
            let short = &flag[2..];
            let fish_has = fish.contains(&format!("-l {short} ")) || fish.contains(&format!("-l {short}\n"));
            assert!(page.contains(&format!("\\fB{flag}\\fR")), "{flag} is not in the page");
            assert!(
                bash.split([' ', '"', ')', '|']).any(|word| word == flag),
                "{flag}: bash does not know it"
            );
            assert!(
                zsh.contains(&format!("{flag}[")) || zsh.contains(&format!("{flag}=")),
                "{flag}: zsh does not know it"
            );
            assert!(fish_has, "{flag}: fish does not know it");
        }
    }
}

#[test]
fn flags_with_one_dash_are_explained_in_the_page() {
    let page = read(&written(), "man/man8/overlayd.8");
    assert!(page.contains("one dash or two") && page.contains("FLANNELD_"), "{page}");
}

#[test]
fn the_pages_are_read_without_a_complaint() {
    let directory = written();
    let pages = fs::read_dir(directory.path().join("man/man8")).expect("the pages");
    let pages: Vec<_> = pages.map(|page| page.expect("an entry").path()).collect();
    // One for each program, and one for each of overlayctl's subcommands.
    let subcommands = overlayctl::arguments::Arguments::command().get_subcommands().count();
    assert_eq!(pages.len(), 2 + subcommands, "{pages:?}");
    for page in pages {
        if is_installed("man") {
            let shown = text(Command::new("man").args(["--warnings", "-l"]).arg(&page).env("MANWIDTH", "80"));
            assert!(shown.contains("SEE ALSO"), "{}: {shown}", page.display());
        }
        if is_installed("lexgrog") {
            // What apropos knows of it.
            let name = page.file_stem().expect("a name").to_string_lossy().into_owned();
            let found = text(Command::new("lexgrog").arg(&page));
            assert!(found.contains(&format!("\"{name} - ")), "{found}");
        }
        if is_installed("mandoc") {
            text(Command::new("mandoc").args(["-Tlint", "-Werror"]).arg(&page));
        }
    }
}

#[test]
fn the_shells_accept_their_completions() {
    let directory = written();
    let accepts = |shell: &str, path: &Path| {
        if is_installed(shell) {
            text(Command::new(shell).arg("-n").arg(path));
        }
    };
    for name in ["overlayd", "overlayctl"] {
        accepts("bash", &directory.path().join(format!("bash-completion/completions/{name}")));
        accepts("zsh", &directory.path().join(format!("zsh/site-functions/_{name}")));
        accepts("fish", &directory.path().join(format!("fish/vendor_completions.d/{name}.fish")));
    }
}

#[test]
fn bash_completes_a_flag_that_is_begun() {
    let directory = written();
    let script = directory.path().join("bash-completion/completions/overlayd");
    let complete = format!(
        "source {}; COMP_WORDS=(overlayd --iface-r); COMP_CWORD=1; _overlayd overlayd --iface-r overlayd; \
         echo ${{COMPREPLY[@]}}",
        script.display()
    );
    assert_eq!(text(Command::new("bash").args(["-c", &complete])).trim(), "--iface-regex");
}
