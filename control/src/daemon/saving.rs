//! Files that others read, and the next run: the subnet file, and the state, beside the subnet file, which a reboot
//! empties, and where there is a place that outlives it, there, too.
//!
//! Each is written by a task of its own. What a disk does not take, now or for ever, is told, and tried again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{debug, warn};

use crate::backoff::Backoff;
use crate::problems::{Part, Problem, Problems};
use crate::state::{SavedState, StateError};
use crate::subnet_file::{Previous, SubnetFile};
use crate::unit;

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
        let file = Writer { part: Part::SubnetFile, gather: Duration::ZERO, between: Duration::ZERO };
        let write = move |file: &SubnetFile| write_subnet_file(file, &subnet_file_at);
        tasks.push(tokio::spawn(file.run(wanted, tried, write, problems.clone())));

        let (state, wanted) = watch::channel(None);
        let file = Writer { part: Part::State, gather: GATHER, between: Duration::ZERO };
        let write = move |state: &Arc<SavedState>| write_state(state, &state_at);
        tasks.push(tokio::spawn(file.run(wanted, watch::channel(None).0, write, problems.clone())));

        let (lasting, wanted) = watch::channel(None);
        if let Some(path) = lasting_at {
            let file = Writer { part: Part::LastingState, gather: GATHER, between: BETWEEN_WRITES };
            let write = move |state: &Arc<SavedState>| write_state(state, &path);
            tasks.push(tokio::spawn(file.run(wanted, watch::channel(None).0, write, problems.clone())));
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

/// A file that says it already is good enough, on a disk that takes no other.
fn write_subnet_file(file: &SubnetFile, path: &Path) -> io::Result<()> {
    match file.write(path) {
        Err(error) if file.is_at(path) => {
            warn!(path = %path.display(), %error, "the subnet file stays as it was, which is right");
            Ok(())
        }
        Err(error) => Err(named(path, &error)),
        Ok(()) => Ok(()),
    }
}

fn write_state(state: &SavedState, path: &Path) -> io::Result<()> {
    state.write(path).map_err(|error| named(path, &error))?;
    debug!(path = %path.display(), peers = state.peers.len(), "state saved");
    Ok(())
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    let hint = unit::hint(path, error);
    io::Error::new(error.kind(), format!("cannot write {}: {error}{hint}", path.display()))
}

/// Writes one file whenever it is to say something else.
struct Writer {
    part: Part,
    /// How long changes are gathered before they are written.
    gather: Duration,
    /// Between two writes.
    between: Duration,
}

impl Writer {
    /// Until the sender of `wanted` is gone; what has changed is written before. Each attempt is told to `tried`.
    async fn run<T: Clone + PartialEq + Send + Sync + 'static>(
        self,
        mut wanted: watch::Receiver<Option<T>>,
        tried: watch::Sender<Option<T>>,
        write: impl Fn(&T) -> io::Result<()> + Send + Sync + 'static,
        problems: Problems,
    ) {
        let write = Arc::new(write);
        let mut pauses = Backoff::of_this_host();
        let (mut written, mut written_at) = (None, None::<Instant>);
        while wanted.changed().await.is_ok() {
            // At once at first: what is in the kernel now is to be found by the next run, however this one ends.
            let begin = written_at.map(|at| (at + self.between).max(Instant::now() + self.gather));
            let mut ends = false;
            if let Some(begin) = begin {
                ends = timeout_at(begin, all_changes(&mut wanted)).await.is_ok();
            }
            loop {
                let value = wanted.borrow_and_update().clone();
                let Some(now) = value.filter(|value| written.as_ref() != Some(value)) else { break };
                let outcome = {
                    let (write, now) = (Arc::clone(&write), now.clone());
                    spawn_blocking(move || write(&now))
                        .await
                        .unwrap_or_else(|error| Err(io::Error::other(error)))
                };
                tried.send_replace(Some(now.clone()));
                written_at = Some(Instant::now());
                let Err(error) = outcome else {
                    problems.report(self.part, None);
                    pauses.reset();
                    written = Some(now);
                    break;
                };
                problems.report(self.part, Some(Problem::io(&error, &error)));
                if ends {
                    return;
                }
                // What keeps it from being written may be over before anything else changes.
                tokio::select! {
                    () = sleep_until(Instant::now() + pauses.next()) => {}
                    changed = wanted.changed() => ends = changed.is_err(),
                }
            }
        }
    }
}

/// Ends when there will be no more.
async fn all_changes<T>(wanted: &mut watch::Receiver<T>) {
    while wanted.changed().await.is_ok() {}
}

/// How long changes of the peers are gathered before they are written to disk.
const GATHER: Duration = Duration::from_millis(500);
/// What lasts is on a disk that wears, and waits for it: a cluster's every change is not worth it.
const BETWEEN_WRITES: Duration = Duration::from_secs(60);
/// What a working disk needs, many times over.
const READ_PATIENCE: Duration = Duration::from_secs(2);
const WRITE_PATIENCE: Duration = Duration::from_secs(2);
