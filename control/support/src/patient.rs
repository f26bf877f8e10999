//! Reads of what may not answer, as files on a server that is away: the thread that renews the lease does not wait for
//! them, and no more than one waits at a time.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;

/// Reads the same thing again and again.
#[derive(Debug)]
pub struct Patient<T> {
    /// The read that is under way.
    reading: Mutex<Option<JoinHandle<T>>>,
}

impl<T> Default for Patient<T> {
    fn default() -> Self {
        Self { reading: Mutex::default() }
    }
}

impl<T: Send + 'static> Patient<T> {
    /// What `read` gives, on a thread of its own; `None` if it does not within [`PATIENCE`]. One that has been waited
    /// for is not waited for again: what it gives in the end is taken then, in place of reading anew.
    pub async fn read(&self, read: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let mut reading = self.reading.lock().await;
        let patience = if reading.is_some() { Duration::ZERO } else { PATIENCE };
        let result = timeout(patience, reading.get_or_insert_with(|| spawn_blocking(read))).await;
        if result.is_ok() {
            *reading = None;
        }
        result.ok()?.ok()
    }
}

/// Many times what a working disk takes.
pub const PATIENCE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test]
    async fn what_hangs_is_waited_for_once_and_read_by_one_thread() {
        let reader = Patient::default();
        assert_eq!(reader.read(|| 1).await, Some(1));
        let (goes_on, held) = channel::<()>();
        let (ended, end) = channel::<()>();
        let hangs = move || {
            let _ = held.recv();
            drop(ended);
            2
        };
        assert_eq!(reader.read(hangs).await, None);
        assert_eq!(reader.read(|| unreachable!("a second thread")).await, None);
        drop(goes_on);
        assert!(end.recv().is_err());
        loop {
            match reader.read(|| unreachable!("a second thread")).await {
                Some(late) => break assert_eq!(late, 2),
                None => tokio::task::yield_now().await,
            }
        }
        assert_eq!(reader.read(|| 3).await, Some(3));
    }
}
