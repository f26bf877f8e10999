//! How often rules are put back that somebody else changes: at once and again, but not for ever at every change.
//! Two programs that each want their own way would otherwise keep a host busy for good.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What was put back of late.
#[derive(Debug)]
pub(super) struct Contest {
    /// How often it may be put back at once.
    left: u32,
    /// Since when the next one is being earned.
    since: Instant,
    contested: bool,
    /// When the rules were found changed, in the last minute.
    changes: VecDeque<Instant>,
    told: Option<Instant>,
}

impl Contest {
    pub(super) fn new(now: Instant) -> Self {
        Self { left: BURST, since: now, contested: false, changes: VecDeque::new(), told: None }
    }

    /// Somebody has changed the rules: whether they may be put back now.
    pub(super) fn may_repair(&mut self, now: Instant) -> bool {
        self.earn(now);
        self.changes.push_back(now);
        if self.changes.len() > COUNTED {
            self.changes.pop_front();
        }
        if self.left == 0 {
            self.contested = true;
            return false;
        }
        self.left -= 1;
        true
    }

    /// Whether somebody keeps changing them: from when it was too often until it has been quiet for a while.
    pub(super) fn is_contested(&mut self, now: Instant) -> bool {
        self.earn(now);
        self.contested &= self.left < BURST / 2;
        self.contested
    }

    /// How often they were changed in the last minute, if that is to be told now: once a minute.
    pub(super) fn news(&mut self, now: Instant) -> Option<usize> {
        if !self.is_contested(now) || self.told.is_some_and(|told| now - told < MINUTE) {
            return None;
        }
        while self.changes.front().is_some_and(|at| now - *at > MINUTE) {
            self.changes.pop_front();
        }
        self.told = Some(now);
        Some(self.changes.len())
    }

    fn earn(&mut self, now: Instant) {
        let earned = u32::try_from((now - self.since).as_secs() / EVERY.as_secs()).unwrap_or(BURST);
        self.since += EVERY * earned;
        self.left = self.left.saturating_add(earned).min(BURST);
    }
}

/// A host's own changes at boot, or a person at work, are fewer.
const BURST: u32 = 20;
/// After that.
const EVERY: Duration = Duration::from_secs(2);
const MINUTE: Duration = Duration::from_secs(60);
/// Looks at the rules are further apart than what would make more of a minute.
const COUNTED: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_changes_are_put_back_at_once_and_endless_ones_less_often() {
        let start = Instant::now();
        let mut contest = Contest::new(start);
        let (mut repairs, mut told) = (Vec::new(), Vec::new());
        for tick in 0..1500 {
            let now = start + Duration::from_millis(400) * tick;
            if contest.may_repair(now) {
                repairs.push(now - start);
            }
            told.extend(contest.news(now));
        }
        let within = |from: u64, to: u64| {
            let range = Duration::from_secs(from)..Duration::from_secs(to);
            repairs.iter().filter(|at| range.contains(*at)).count()
        };
        assert_eq!(within(0, 5), 13, "all");
        assert!(within(0, 60) <= 50 && (29..=31).contains(&within(300, 360)), "{}", within(300, 360));
        assert!((9..=10).contains(&told.len()), "once a minute: {told:?}");
        assert!(told[1..].iter().all(|changes| (149..=151).contains(changes)), "{told:?}");
    }

    #[test]
    fn a_contest_is_over_when_it_has_been_quiet() {
        let start = Instant::now();
        let mut contest = Contest::new(start);
        while contest.may_repair(start) {
            assert!(!contest.is_contested(start));
        }
        assert!(contest.is_contested(start + EVERY));
        assert!(!contest.is_contested(start + EVERY * (BURST / 2)));
        assert!(contest.may_repair(start + EVERY * (BURST / 2)));
    }
}
