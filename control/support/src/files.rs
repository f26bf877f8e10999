//! Files as the daemon reads and writes them. What is read is a regular file of a bounded size: a FIFO would be
//! waited for, and a device may never end. A file is replaced as a whole, so that a reader sees the old content
//! or the new one, never a part.

use std::fs::{DirBuilder, File, Metadata, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::fs::OFlags;
use tempfile::NamedTempFile;

/// The content of the regular file at `path`, if it is no longer than `most` bytes.
pub fn read(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let (file, _) = open(path, OFlags::empty())?;
    let content = beginning(file, most)?;
    if content.len() > most {
        return Err(refused(&format!("it is longer than {most} bytes")));
    }
    Ok(content)
}

/// The content of regular files in a directory that others may write to; of one that is longer than `most` bytes
/// the beginning, one byte more than that. Each is read only under its one name, so that nobody has us read, and
/// tell, what is somebody else's.
pub fn read_own<'p>(files: impl Iterator<Item = (&'p Path, usize)>) -> Vec<io::Result<Vec<u8>>> {
    let mut linked = Vec::new();
    let mut contents = Vec::new();
    for (path, most) in files {
        contents.push(read_under_one_name(path, most).unwrap_or_else(|| {
            linked.push((contents.len(), path, most));
            Err(refused("it is a hard link to another file"))
        }));
    }
    if !linked.is_empty() {
        // Where files cannot be renamed without replacing others, they have two names while they are made. However
        // many there are, they have the same time for it.
        thread::sleep(TWO_NAMES);
    }
    for (index, path, most) in linked {
        if let Some(content) = read_under_one_name(path, most) {
            contents[index] = content;
        }
    }
    contents
}

/// The same of one; `None` if it has several names.
fn read_under_one_name(path: &Path, most: usize) -> Option<io::Result<Vec<u8>>> {
    match open(path, OFlags::NOFOLLOW) {
        Ok((_, metadata)) if metadata.nlink() > 1 => None,
        opened => Some(opened.and_then(|(file, _)| beginning(file, most))),
    }
}

fn open(path: &Path, flags: OFlags) -> io::Result<(File, Metadata)> {
    let flags = (flags | OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(|error| {
        // What O_NOFOLLOW says of a link.
        let is_link = error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
        if is_link { refused("it is a symbolic link") } else { error }
    })?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    if !metadata.is_file() {
        return Err(refused("it is not a regular file"));
    }
    Ok((file, metadata))
}

fn beginning(file: File, most: usize) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(u64::try_from(most).map_or(u64::MAX, |most| most + 1)).read_to_end(&mut content)?;
    Ok(content)
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// For as long a file in the making may have two names.
const TWO_NAMES: Duration = Duration::from_millis(20);
/// The longest text that is read of files which people or their tools write, in bytes.
pub const LONGEST_TEXT: usize = 1 << 20;

/// Writes `content` to `path`, replacing what is there, with the permission bits `mode` whatever
/// the umask; makes the directory (0755) if it is missing.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = directory_of(path);
    make_directory(directory)?;
    staged(directory, content, mode)?.persist(path)?;
    sync(directory)
}

/// Like `replace`, but fails with `AlreadyExists` if there is a file at `path`.
pub fn create(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = directory_of(path);
    make_directory(directory)?;
    staged(directory, content, mode)?.persist_noclobber(path)?;
    sync(directory)
}

/// Makes `path` and what is missing above it, each 0755.
pub fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The content in a dot-file of the same directory, gone again unless it is given its name.
fn staged(directory: &Path, content: &[u8], mode: u32) -> io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix(".").suffix(".new").tempfile_in(directory)?;
    file.write_all(content)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    Ok(file)
}

/// After a power cut the new name must be there, too, not only the content.
fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_regular_files_that_are_not_too_long_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("file"), "12345").unwrap();
        mknodat(CWD, path("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        symlink(path("file"), path("link")).unwrap();
        let reason = |read: io::Result<Vec<u8>>| read.unwrap_err().to_string();

        assert_eq!(read(&path("file"), 5).unwrap(), b"12345");
        assert_eq!(read(&path("link"), 5).unwrap(), b"12345");
        let read_own = |path: &Path, most: usize| read_own([(path, most)].into_iter()).remove(0);
        assert_eq!(read_own(&path("file"), 5).unwrap(), b"12345");
        assert!(reason(read(&path("file"), 4)).contains("longer than 4 bytes"));
        assert_eq!(read_own(&path("file"), 3).unwrap(), b"1234", "one byte more");
        assert!(reason(read_own(&path("link"), 5)).contains("symbolic link"));
        assert_eq!(read(dir.path(), 5).unwrap_err().kind(), io::ErrorKind::IsADirectory);
        for read in [&read as &dyn Fn(&Path, usize) -> io::Result<Vec<u8>>, &read_own] {
            assert!(reason(read(&path("fifo"), 5)).contains("not a regular file"));
            assert_eq!(read(&path("none"), 5).unwrap_err().kind(), io::ErrorKind::NotFound);
        }
        fs::hard_link(path("file"), path("second")).unwrap();
        assert!(reason(read_own(&path("second"), 5)).contains("hard link"));
    }

    #[test]
    fn a_file_in_the_making_is_read_once_it_has_one_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["linked", "made"] {
            fs::write(path(name), name).unwrap();
            fs::hard_link(path(name), path(&format!("draft of {name}"))).unwrap();
        }
        fs::write(path("plain"), "plain").unwrap();
        // The maker is done when the other file is met, before which nothing is waited for.
        let names = ["made", "linked", "plain"].map(path);
        let files = names.iter().map(|name| {
            if name.ends_with("plain") {
                fs::remove_file(path("draft of made")).unwrap();
            }
            (name.as_path(), 9)
        });
        let mut contents = read_own(files).into_iter();
        assert_eq!(contents.next().unwrap().unwrap(), b"made");
        assert!(contents.next().unwrap().unwrap_err().to_string().contains("hard link"));
        assert_eq!(contents.next().unwrap().unwrap(), b"plain");
    }

    #[test]
    fn replacing_sets_the_mode_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file");
        replace(&path, b"one", 0o600).unwrap();
        replace(&path, b"two", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn creating_never_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        create(&path, b"one", 0o644).unwrap();
        assert_eq!(create(&path, b"two", 0o644).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
