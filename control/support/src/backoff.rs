//! Growing pauses between attempts.

use std::time::Duration;

use rand::Rng;

/// Pauses that double up to a limit, each shortened at random by up to a half, so that those who fail together do not
/// come back together.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    doublings: u32,
    attempts: u32,
}

impl Backoff {
    /// The first is `first` long, and they double so often.
    pub const fn new(first: Duration, doublings: u32) -> Self {
        Self { first, doublings, attempts: 0 }
    }

    /// For what is mended on this host: a second, up to 16 s.
    pub const fn of_this_host() -> Self {
        Self::new(Duration::from_secs(1), 4)
    }

    /// How long to wait after one more failure.
    pub fn pause(&mut self) -> Duration {
        let longest = self.first * 2u32.pow(self.attempts.min(self.doublings));
        self.attempts += 1;
        longest.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// How many failures there have been.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// It has come about.
    pub fn reset(&mut self) {
        self.attempts = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_limit_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_millis(250), 5);
        let first = backoff.pause();
        assert!(first >= Duration::from_millis(125) && first <= Duration::from_millis(250));
        let last = (0..20).map(|_| backoff.pause()).last().unwrap();
        assert!(last >= Duration::from_secs(4) && last <= Duration::from_secs(8));
        backoff.reset();
        assert!(backoff.pause() <= Duration::from_millis(250));
    }
}
