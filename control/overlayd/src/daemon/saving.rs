//! Files that others read, and the next run: the subnet file, and the state, beside the subnet file, which a reboot
//! empties, and where there is a place that outlives it, there, too.
//!
//! Each is written by a task of its own. What a disk does not take, now or for ever, is told, and tried again. What
//! somebody removes or overwrites is written again, less and less often if that goes on.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use tracing::{debug, warn};

use crate::problems::{Part, Problems};
use overlay_leases::state::{SavedState, StateError};
use overlay_leases::subnet_file::{Previous, SubnetFile};
use overlay_support::backoff::Backoff;
use overlay_support::problem::Problem;
use overlay_support::unit;

/// What an earlier run has left.
#[derive(Default)]
pub(super) struct Left {
    /// What its subnet file says.
    pub(super) previous: Previous,
    /// Its state: of the last run, or, after a reboot, of one before it; and where it was found.
    pub(super) state: Option<(SavedState, PathBuf)>,
    /// The state of the last run alone: what that has put into the kernel is there.
    pub(super) of_last_run: Option<SavedState>,
}

impl Left {
    /// Reads it. A disk that does not answer is not waited for.
    pub(super) async fn read(subnet_file: &Path) -> Self {
        let path = subnet_file.to_owned();
        match timeout(READ_PATIENCE, spawn_blocking(move || Self::read_now(&path))).await {
            Ok(Ok(left)) => left,
            _ => {
                warn!(
                    subnet_file = %subnet_file.display(),
                    "the files of an earlier run are not read within {} s: starting without",
                    READ_PATIENCE.as_secs()
                );
                Self::default()
            }
        }
    }

    fn read_now(subnet_file: &Path) -> Self {
        let previous = Previous::read(subnet_file).unwrap_or_else(|error| {
            warn!(path = %subnet_file.display(), %error, "cannot read the subnet file of an earlier run");
            Previous::default()
        });
        let of_last_run = read_state(&SavedState::path(subnet_file));
        let state = of_last_run.clone().map(|state| (state, SavedState::path(subnet_file)));
        let lasting = || {
            let path = lasting_path(subnet_file)?;
            Some((read_state(&path)?, path))
        };
        Self { previous, state: state.or_else(lasting), of_last_run }
    }
}

fn read_state(path: &Path) -> Option<SavedState> {
    match SavedState::read(path) {
        Ok(state) => Some(state),
        Err(StateError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            warn!(%error, "the saved state cannot be used: starting without");
            None
        }
    }
}

/// In the directory that the service manager has made for it (`systemd.exec(5)`).
fn lasting_path(subnet_file: &Path) -> Option<PathBuf> {
    let directories = std::env::var_os("STATE_DIRECTORY")?;
    let first = std::env::split_paths(&directories).next().filter(|directory| directory.is_absolute())?;
    Some(SavedState::lasting_path(&first, subnet_file))
}

/// The tasks that write.
pub(super) struct Files {
    subnet_file: watch::Sender<Option<SubnetFile>>,
    subnet_file_tried: watch::Receiver<Option<SubnetFile>>,
    state: watch::Sender<Option<Arc<SavedState>>>,
    lasting: watch::Sender<Option<Arc<SavedState>>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Files {
    pub(super) fn start(subnet_file: &Path, problems: &Problems) -> Self {
        let (state_at, lasting_at) = (SavedState::path(subnet_file), lasting_path(subnet_file));
        let subnet_file_at = subnet_file.to_owned();
        let mut tasks = Vec::new();
        let (subnet_file, wanted) = watch::channel(None);
        let (tried, subnet_file_tried) = watch::channel(None);
        let file = Writer {
            part: Part::SubnetFile,
            path: subnet_file_at,
            gather: Duration::ZERO,
            between: Duration::ZERO,
        };
        tasks.push(tokio::spawn(file.run::<SubnetFile>(wanted, tried, problems.clone())));

        let (state, wanted) = watch::channel(None);
        let file = Writer { part: Part::State, path: state_at, gather: GATHER, between: Duration::ZERO };
        tasks.push(tokio::spawn(file.run::<Arc<SavedState>>(
            wanted,
            watch::channel(None).0,
            problems.clone(),
        )));

        let (lasting, wanted) = watch::channel(None);
        if let Some(path) = lasting_at {
            let file = Writer { part: Part::LastingState, path, gather: GATHER, between: BETWEEN_WRITES };
            tasks.push(tokio::spawn(file.run::<Arc<SavedState>>(
                wanted,
                watch::channel(None).0,
                problems.clone(),
            )));
        }
        Self { subnet_file, subnet_file_tried, state, lasting, tasks }
    }

    /// Has the subnet file say this.
    pub(super) fn write_subnet_file(&self, file: SubnetFile) {
        self.subnet_file.send_replace(Some(file));
    }

    /// Ends when the subnet file is written, or has failed to be, or has not for [`WRITE_PATIENCE`].
    pub(super) fn subnet_file_tried(&self) -> impl Future<Output = ()> + Send + 'static {
        let (mut tried, wanted) = (self.subnet_file_tried.clone(), *self.subnet_file.borrow());
        async move {
            let _ = timeout(WRITE_PATIENCE, tried.wait_for(|tried| *tried == wanted)).await;
        }
    }

    /// Has the next run start from `state`.
    pub(super) fn save(&self, state: SavedState) {
        let state = Arc::new(state);
        self.state.send_replace(Some(Arc::clone(&state)));
        self.lasting.send_replace(Some(state));
    }

    /// Writes what waits to be written, until `deadline` at most.
    pub(super) async fn stop(self, deadline: Instant) {
        let Self { subnet_file, state, lasting, tasks, .. } = self;
        drop((subnet_file, state, lasting));
        for task in tasks {
            if timeout_at(deadline, task).await.is_err() {
                warn!("what the next run starts from is not written in time: the disk does not answer");
                return;
            }
        }
    }
}

/// What a file says.
trait Content: Clone + PartialEq + Send + Sync + 'static {
    /// Has the file say this.
    fn write_to(&self, path: &Path) -> io::Result<()>;

    /// Whether the file says it.
    fn is_in(&self, path: &Path) -> bool;
}

impl Content for SubnetFile {
    /// A file that says it already is good enough, on a disk that takes no other.
    fn write_to(&self, path: &Path) -> io::Result<()> {
        match self.write(path) {
            Err(error) if self.is_at(path) => {
                warn!(path = %path.display(), %error, "the subnet file stays as it was, which is right");
                Ok(())
            }
            Err(error) => Err(named(path, &error)),
            Ok(()) => Ok(()),
        }
    }

    fn is_in(&self, path: &Path) -> bool {
        self.is_at(path)
    }
}

impl Content for Arc<SavedState> {
    fn write_to(&self, path: &Path) -> io::Result<()> {
        self.write(path).map_err(|error| named(path, &error))?;
        debug!(path = %path.display(), peers = self.peers.len(), "state saved");
        Ok(())
    }

    fn is_in(&self, path: &Path) -> bool {
        SavedState::read(path).is_ok_and(|read| read == **self)
    }
}

/// What shows that a file is another than it was, without reading it: inode, length and time of the last change.
type Stamp = Option<(u64, u64, i64, i64)>;

fn stamp(path: &Path) -> Stamp {
    let meta = fs::metadata(path).ok()?;
    Some((meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec()))
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    let hint = unit::hint(path, error);
    io::Error::new(error.kind(), format!("cannot write {}: {error}{hint}", path.display()))
}

/// Writes one file whenever it is to say something else, or says something else by somebody's doing.
struct Writer {
    part: Part,
    path: PathBuf,
    /// How long changes are gathered before they are written.
    gather: Duration,
    /// Between two writes.
    between: Duration,
}

impl Writer {
    /// Until the sender of `wanted` is gone; what has changed is written before. Each attempt is told to `tried`.
    async fn run<T: Content>(
        self,
        mut wanted: watch::Receiver<Option<T>>,
        tried: watch::Sender<Option<T>>,
        problems: Problems,
    ) {
        let path = Arc::new(self.path);
        let (mut pauses, mut looks) = (Backoff::of_this_host(), LOOKS);
        let mut written: Option<(T, Stamp)> = None;
        let (mut written_at, mut put_back_at) = (None::<Instant>, None::<Instant>);
        let mut look = looks.pause();
        loop {
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { return },
                () = sleep(look), if written.is_some() => {
                    let Some((value, before)) = written.take() else { continue };
                    written = still_in(value, before, Arc::clone(&path)).await;
                    if written.is_some() {
                        if put_back_at.is_some_and(|at| at.elapsed() > LONGEST_LOOK) {
                            (looks, put_back_at) = (LOOKS, None);
                            look = looks.pause();
                        }
                        continue;
                    }
                    warn!(path = %path.display(), "somebody has removed or overwritten this file of ours: writing it again");
                    put_back_at = Some(Instant::now());
                    look = looks.pause();
                }
            }
            // At once at first: what is in the kernel now is to be found by the next run, however this one ends.
            let begin = written_at.map(|at| (at + self.between).max(Instant::now() + self.gather));
            let mut ends = false;
            if let Some(begin) = begin {
                ends = timeout_at(begin, all_changes(&mut wanted)).await.is_ok();
            }
            loop {
                let value = wanted.borrow_and_update().clone();
                let is_written = |value: &T| written.as_ref().is_some_and(|(written, _)| written == value);
                let Some(now) = value.filter(|value| !is_written(value)) else { break };
                let outcome = {
                    let (path, now) = (Arc::clone(&path), now.clone());
                    let write = move || now.write_to(&path).map(|()| stamp(&path));
                    spawn_blocking(write).await.unwrap_or_else(|error| Err(io::Error::other(error)))
                };
                tried.send_replace(Some(now.clone()));
                written_at = Some(Instant::now());
                let error = match outcome {
                    Ok(stamp) => {
                        problems.report(self.part, None);
                        pauses.reset();
                        written = Some((now, stamp));
                        break;
                    }
                    Err(error) => error,
                };
                problems.report(self.part, Some(Problem::io(&error, &error)));
                if ends {
                    return;
                }
                // What keeps it from being written may be over before anything else changes.
                tokio::select! {
                    () = sleep_until(Instant::now() + pauses.pause()) => {}
                    changed = wanted.changed() => ends = changed.is_err(),
                }
            }
        }
    }
}

/// The value with the file's stamp, if the file says it still.
async fn still_in<T: Content>(value: T, before: Stamp, path: Arc<PathBuf>) -> Option<(T, Stamp)> {
    let look = move || {
        let now = stamp(&path);
        (now == before || value.is_in(&path)).then_some((value, now))
    };
    spawn_blocking(look).await.unwrap_or(None)
}

/// Ends when there will be no more.
async fn all_changes<T>(wanted: &mut watch::Receiver<T>) {
    while wanted.changed().await.is_ok() {}
}

/// How long changes of the peers are gathered before they are written to disk.
const GATHER: Duration = Duration::from_millis(500);
/// How often a file is looked at, and how much less often while somebody else keeps writing it.
const LOOKS: Backoff = Backoff::new(Duration::from_secs(4), 4);
const LONGEST_LOOK: Duration = Duration::from_secs(4 << 4);
/// What lasts is on a disk that wears, and waits for it: a cluster's every change is not worth it.
const BETWEEN_WRITES: Duration = Duration::from_secs(60);
/// What a working disk needs, many times over.
const READ_PATIENCE: Duration = Duration::from_secs(2);
const WRITE_PATIENCE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::health::Health;

    /// What somebody does to the file, and whether their line stays.
    type Deed = (&'static str, fn(&Path), bool);

    fn file(mtu: u32) -> SubnetFile {
        let (network, subnet) = ("10.1.0.0/16".parse().unwrap(), "10.1.9.0/24".parse().unwrap());
        SubnetFile { network, subnet, mtu, ip_masq: false }
    }

    /// A writer's task, which is to write `file(1450)`.
    fn writing(directory: &TempDir) -> (PathBuf, watch::Sender<Option<SubnetFile>>) {
        let path = directory.path().join("subnet.env");
        let (wanted, receiver) = watch::channel(None);
        let writer = Writer {
            part: Part::SubnetFile,
            path: path.clone(),
            gather: Duration::ZERO,
            between: Duration::ZERO,
        };
        let problems = Problems::told_to(Health::default());
        tokio::spawn(writer.run::<SubnetFile>(receiver, watch::channel(None).0, problems));
        wanted.send_replace(Some(file(1450)));
        (path, wanted)
    }

    /// Waits, by the paused clock, until the file is right.
    async fn right_after(path: &Path, wanted: &SubnetFile) -> Duration {
        let begun = Instant::now();
        while !wanted.is_at(path) {
            assert!(begun.elapsed() < 10 * LONGEST_LOOK, "the file is never right");
            sleep(Duration::from_millis(100)).await;
        }
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn what_somebody_removes_or_overwrites_is_written_again_and_others_lines_stay() {
        let deeds: [Deed; 3] = [
            ("removed", |path| fs::remove_file(path).unwrap(), false),
            ("overwritten", |path| fs::write(path, "FLANNEL_MTU=1\n").unwrap(), false),
            (
                "added to",
                |path| {
                    let text = fs::read_to_string(path).unwrap();
                    fs::write(path, format!("{text}DOCKER_OPTS=\"--bip\"\n")).unwrap();
                },
                true,
            ),
        ];
        for (what, deed, stays) in deeds {
            let directory = tempfile::tempdir().unwrap();
            let (path, _wanted) = writing(&directory);
            right_after(&path, &file(1450)).await;
            deed(&path);
            assert!(right_after(&path, &file(1450)).await <= Duration::from_secs(6), "{what}");
            assert_eq!(fs::read_to_string(&path).unwrap().contains("DOCKER_OPTS"), stays, "{what}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_overwrites_it_again_and_again_is_answered_less_and_less_often() {
        let directory = tempfile::tempdir().unwrap();
        let (path, _wanted) = writing(&directory);
        let mut waits = Vec::new();
        for _ in 0..8 {
            waits.push(right_after(&path, &file(1450)).await);
            fs::write(&path, "FLANNEL_MTU=1\n").unwrap();
        }
        assert!(waits[7] >= LONGEST_LOOK / 2 && waits[7] > waits[2], "{waits:?}");
    }
}
