//! What the next run starts from: beside the subnet file, which a reboot empties, and where there is a place
//! that outlives it, there, too.

use std::io;
use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::{Daemon, DaemonError};
use crate::node::Plan;
use crate::state::{SavedState, StateError};
use crate::subnet_file::SubnetFile;

/// The copy that outlives a reboot.
#[derive(Debug, Default)]
pub(super) struct Lasting {
    /// `None` without a place for it.
    path: Option<PathBuf>,
    /// When it is to be written next, if it is not as it should be.
    pub(super) due: Option<Instant>,
    written: Option<Instant>,
}

impl Lasting {
    /// In the directory that the service manager has made for it (`systemd.exec(5)`).
    pub(super) fn new(subnet_file: &std::path::Path) -> Self {
        let directories = std::env::var_os("STATE_DIRECTORY");
        let first = directories.as_ref().and_then(|list| std::env::split_paths(list).next());
        let path = first.filter(|directory| directory.is_absolute());
        Self {
            path: path.map(|directory| SavedState::lasting_path(&directory, subnet_file)),
            ..Self::default()
        }
    }

    /// It differs from what it should be: soon, but not at each change of many.
    fn changed(&mut self) {
        if self.path.is_some() && self.due.is_none() {
            let now = Instant::now();
            self.due = Some(self.written.map_or(now, |written| (written + BETWEEN_WRITES).max(now)));
        }
    }
}

impl Daemon {
    /// The state of an earlier run: of the last one, or, after a reboot, of one before it.
    pub(super) fn read_saved(&self) -> Option<(SavedState, PathBuf)> {
        let places = [Some(SavedState::path(&self.flags.subnet_file)), self.lasting.path.clone()];
        for path in places.into_iter().flatten() {
            match SavedState::read(&path) {
                Ok(state) => return Some((state, path)),
                Err(StateError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => warn!(%error, "the saved state cannot be used: starting without"),
            }
        }
        None
    }

    fn state(&self) -> Option<SavedState> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let (view, _) = shared.view.as_ref()?;
        Some(SavedState {
            store: self.store.clone(),
            public_ip: self.underlay.public_ip,
            config: view.config_text.clone(),
            lease: view.lease.clone(),
            peers: view.peers.to_vec(),
        })
    }

    pub(super) fn save(&mut self) {
        self.save_at = None;
        let Some(state) = self.state() else { return };
        let path = SavedState::path(&self.flags.subnet_file);
        match state.write(&path) {
            Ok(()) => {
                debug!(path = %path.display(), peers = state.peers.len(), "state saved");
                self.unsaved = None;
            }
            Err(error) => {
                let problem = error.to_string();
                if self.unsaved.as_ref() != Some(&problem) {
                    warn!(path = %path.display(), %error, "the state cannot be saved: a restart would wait for the store");
                }
                self.unsaved = Some(problem);
                // What keeps it from being saved may be over before anything else changes.
                self.save_at = Some(Instant::now() + BETWEEN_TRIES);
            }
        }
        self.lasting.changed();
    }

    pub(super) fn save_lasting(&mut self) {
        self.lasting.due = None;
        let (Some(state), Some(path)) = (self.state(), &self.lasting.path) else { return };
        self.lasting.written = Some(Instant::now());
        match state.write(path) {
            Ok(()) => {
                debug!(path = %path.display(), peers = state.peers.len(), "state saved for after a reboot");
            }
            Err(error) => {
                warn!(path = %path.display(), %error, "the state cannot be saved: after a reboot, a start would wait for the store");
            }
        }
    }

    /// A file that says it already is good enough, on a disk that takes no other.
    pub(super) fn write_subnet_file(&self, plan: &Plan) -> Result<(), DaemonError> {
        let file = SubnetFile {
            network: plan.config.network,
            subnet: plan.subnet,
            mtu: plan.mtu(),
            ip_masq: self.flags.ip_masq,
        };
        let path = &self.flags.subnet_file;
        match file.write(path) {
            Ok(()) => Ok(()),
            Err(error) if file.is_at(path) => {
                warn!(path = %path.display(), %error, "the subnet file stays as it was, which is right");
                Ok(())
            }
            Err(source) => Err(DaemonError::SubnetFile { path: path.clone(), source }),
        }
    }
}

impl Drop for Daemon {
    /// A change that was not written yet is written before the daemon is gone.
    fn drop(&mut self) {
        if self.save_at.is_some() {
            self.save();
        }
        if self.lasting.due.is_some() {
            self.save_lasting();
        }
    }
}

/// Between two tries to save the state.
const BETWEEN_TRIES: Duration = Duration::from_secs(10);
/// What lasts is on a disk that wears, and waits for it: a cluster's every change is not worth it.
const BETWEEN_WRITES: Duration = Duration::from_secs(60);
