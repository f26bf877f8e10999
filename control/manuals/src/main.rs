//! Writes the manual pages and the shells' completions of `overlayd` and `overlayctl` into a directory that is
//! laid out as /usr/share is: `overlay-manuals DIRECTORY`. `overlay-manuals --reference DIRECTORY` writes the documents
//! of `docs/reference` instead.

mod reference;

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::{env, fs};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};
use overlay_flags::Flags;
use overlayctl::arguments::Arguments;

/// What an operator meets of the daemon's on the host.
const FILES: &str = "The subnet file, by default /run/flannel/subnet.env; /etc/default/overlayd, whose \
    variables the service starts overlayd with.";

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let result = match arguments.as_slice() {
        [option, directory] if option == "--reference" => reference::write(Path::new(directory)),
        [directory] => write(Path::new(directory)),
        _ => Err("give it the directory to write into, behind --reference for the reference".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "overlay-manuals: {error}");
            ExitCode::FAILURE
        }
    }
}

fn write(directory: &Path) -> Result<(), String> {
    let overlayd = Flags::definition();
    let overlayctl = Arguments::command().disable_help_subcommand(true);
    for (command, see_also) in [(overlayd, "overlayctl(8)"), (overlayctl, "overlayd(8)")] {
        completions(&command, directory)?;
        let mut command = command;
        command.build();
        pages(&command, see_also, &directory.join("man/man8"))?;
    }
    Ok(())
}

fn completions(command: &Command, directory: &Path) -> Result<(), String> {
    let name = command.get_name();
    for (shell, path) in [
        (Shell::Bash, format!("bash-completion/completions/{name}")),
        (Shell::Zsh, format!("zsh/site-functions/_{name}")),
        (Shell::Fish, format!("fish/vendor_completions.d/{name}.fish")),
    ] {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut command.clone(), name, &mut text);
        save(&directory.join(path), &text)?;
    }
    Ok(())
}

/// The page of `command`, and one for each of its subcommands.
fn pages(command: &Command, see_also: &str, directory: &Path) -> Result<(), String> {
    let source = concat!("overlayd ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).section("8").manual("overlayd").source(source);
    let mut text = Vec::new();
    man.render(&mut text)
        .and_then(|()| rest(command, see_also).to_writer(&mut text))
        .map_err(said_of("a page"))?;
    save(&directory.join(man.get_filename()), &text)?;
    let back = format!("{}(8), {see_also}", command.get_name());
    command.get_subcommands().try_for_each(|subcommand| pages(subcommand, &back, directory))
}

/// What clap knows nothing of.
fn rest(command: &Command, see_also: &str) -> Roff {
    let mut roff = Roff::new();
    if command.get_name() == "overlayd" {
        roff.control("SH", ["FILES"]).text([roman(FILES)]);
    }
    roff.control("SH", ["SEE ALSO"]).text([roman(see_also)]);
    roff
}

fn save(path: &Path, text: &[u8]) -> Result<(), String> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).map_err(said_of(&directory.display().to_string()))?;
    fs::write(path, text).map_err(said_of(&path.display().to_string()))
}

fn said_of(what: &str) -> impl Fn(io::Error) -> String {
    let what = what.to_owned();
    move |error| format!("cannot write {what}: {error}")
}
