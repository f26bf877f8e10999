//! Statistics: pure functions over numbers.

use serde::{Deserialize, Serialize};

/// The middle and the ends of several measurements.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median; between two middle values, their mean.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// How long the slow ones took, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Half took no longer.
    pub p50: u64,
    /// Nine of ten took no longer.
    pub p90: u64,
    /// All but one of a hundred took no longer.
    pub p99: u64,
    /// The longest.
    pub max: u64,
    /// The average.
    #[serde(default)]
    pub mean: u64,
}

impl Spread {
    /// Of these values, in any order; `None` if there are none.
    #[must_use]
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let upper = values.len() / 2;
        let lower = (values.len() - 1) / 2;
        Some(Self { median: f64::midpoint(values[lower], values[upper]), min, max })
    }
}

impl Percentiles {
    /// Of these durations in nanoseconds, by nearest rank; `None` if there are none.
    #[must_use]
    pub fn of(mut durations: Vec<u64>) -> Option<Self> {
        durations.sort_unstable();
        let max = *durations.last()?;
        let rank = |percent: usize| durations[(durations.len() * percent).div_ceil(100) - 1];
        let mean = durations.iter().sum::<u64>() / durations.len() as u64;
        Some(Self { p50: rank(50), p90: rank(90), p99: rank(99), max, mean })
    }

    /// The median of each over several measurements, and the longest of all; `None` if there are none.
    #[must_use]
    pub fn middle(of: &[Self]) -> Option<Self> {
        let median =
            |part: fn(&Self) -> u64| Spread::of(of.iter().map(|p| part(p) as f64)).map(|s| s.median as u64);
        Some(Self {
            p50: median(|p| p.p50)?,
            p90: median(|p| p.p90)?,
            p99: median(|p| p.p99)?,
            max: of.iter().map(|p| p.max).max()?,
            mean: median(|p| p.mean)?,
        })
    }
}

/// The ratios of the values of one subject to those of the baseline, round with the same round.
/// Both are pairs of round and value; a round that one of them lacks, or whose baseline is zero,
/// gives none.
#[must_use]
pub fn paired_ratios(values: &[(u32, f64)], baseline: &[(u32, f64)]) -> Vec<f64> {
    let of_baseline = |round| baseline.iter().find(|(other, _)| *other == round).map(|(_, value)| *value);
    let ratio = |(round, value): &(u32, f64)| match of_baseline(*round) {
        Some(base) if base != 0.0 => Some(value / base),
        _ => None,
    };
    values.iter().filter_map(ratio).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(Spread::of([]), None);
        assert_eq!(Spread::of([4.0]), Some(Spread { median: 4.0, min: 4.0, max: 4.0 }));
        assert_eq!(Spread::of([9.0, 1.0, 4.0]), Some(Spread { median: 4.0, min: 1.0, max: 9.0 }));
        assert_eq!(Spread::of([9.0, 1.0, 4.0, 6.0]), Some(Spread { median: 5.0, min: 1.0, max: 9.0 }));
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        assert_eq!(Percentiles::of(Vec::new()), None);
        assert_eq!(Percentiles::of(vec![7]), Some(Percentiles { p50: 7, p90: 7, p99: 7, max: 7, mean: 7 }));
        let hundred = (1..=100).rev().collect();
        assert_eq!(
            Percentiles::of(hundred),
            Some(Percentiles { p50: 50, p90: 90, p99: 99, max: 100, mean: 50 })
        );
        let ten = (1..=10).collect();
        assert_eq!(Percentiles::of(ten), Some(Percentiles { p50: 5, p90: 9, p99: 10, max: 10, mean: 5 }));
    }

    #[test]
    fn percentiles_of_several_rounds_keep_the_longest() {
        let round = |p50, max| Percentiles { p50, p90: 2 * p50, p99: 3 * p50, max, mean: p50 };
        let middle = Percentiles::middle(&[round(10, 900), round(30, 100), round(20, 200)]);
        assert_eq!(middle, Some(Percentiles { p50: 20, p90: 40, p99: 60, max: 900, mean: 20 }));
        assert_eq!(Percentiles::middle(&[]), None);
    }

    #[test]
    fn ratios_are_taken_round_by_round() {
        let baseline = [(1, 10.0), (2, 100.0), (4, 0.0)];
        let values = [(2, 50.0), (1, 20.0), (3, 7.0), (4, 7.0)];
        assert_eq!(paired_ratios(&values, &baseline), [0.5, 2.0]);
        assert_eq!(paired_ratios(&values, &[]), [0.0; 0]);
    }
}
