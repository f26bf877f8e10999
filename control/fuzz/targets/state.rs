//! The saved state: read as it is found, and again as it is written.
#![no_main]

use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use overlay_leases::state::SavedState;
use tempfile::TempDir;

// In memory: each write is waited for.
static DIRECTORY: LazyLock<TempDir> = LazyLock::new(|| TempDir::new_in("/dev/shm").expect("a directory"));
static FILE: LazyLock<PathBuf> = LazyLock::new(|| DIRECTORY.path().join("state.json"));

fuzz_target!(|data: &[u8]| {
    fs::write(&*FILE, data).expect("a file can be written");
    if let Ok(state) = SavedState::read(&FILE) {
        state.write(&FILE).expect("a file can be written");
        assert_eq!(SavedState::read(&FILE).expect("what we write we read"), state);
    }
});
