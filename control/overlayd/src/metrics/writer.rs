//! Series as the crate writes them, a family a call.

use std::fmt;

use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, EncodeMetric, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// What a family is called, what it means, and in what it is measured.
pub(super) struct About(pub &'static str, pub &'static str, pub Option<Unit>);

pub(super) struct Writer<'a>(pub DescriptorEncoder<'a>);

/// The distribution of one series.
pub(super) struct Distribution {
    pub sum: f64,
    /// The largest value of each bucket, and how many are in it and in none before.
    pub buckets: Vec<(f64, u64)>,
}

impl Writer<'_> {
    pub(super) fn gauges<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        About(name, help, unit): About,
        series: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result
    where
        ConstGauge<V>: EncodeMetric,
    {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        for (labels, value) in series {
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    pub(super) fn gauge<V: EncodeGaugeValue>(&mut self, about: About, value: V) -> fmt::Result
    where
        ConstGauge<V>: EncodeMetric,
    {
        self.gauges(about, [(NO_LABELS, value)])
    }

    pub(super) fn counters<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        About(name, help, unit): About,
        series: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result
    where
        ConstCounter<V>: EncodeMetric,
    {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        for (labels, value) in series {
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    pub(super) fn counter<V: EncodeCounterValue>(&mut self, about: About, value: V) -> fmt::Result
    where
        ConstCounter<V>: EncodeMetric,
    {
        self.counters(about, [(NO_LABELS, value)])
    }

    pub(super) fn histograms<L: EncodeLabelSet>(
        &mut self,
        About(name, help, unit): About,
        series: impl IntoIterator<Item = (L, Distribution)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Histogram)?;
        for (labels, Distribution { sum, buckets }) in series {
            let count = buckets.iter().map(|(_, count)| count).sum();
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    pub(super) fn info<L: EncodeLabelSet>(&mut self, name: &str, help: &str, labels: &L) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
    }
}

const NO_LABELS: [(&str, &str); 0] = [];
