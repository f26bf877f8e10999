//! `overlayctl ping`: echoes through the overlay, each beside one on the underlay.

use std::cmp::Ordering;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::icmp;
use crate::arguments;
use overlay_api::client::{self, ClientError};
use overlay_api::ping::Answer;

/// The echoes of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Each, in order.
    pub echoes: Vec<Echo>,
    /// Whether the node answers the shortest echo, where none of the length asked for came back.
    pub short_answered: Option<bool>,
    /// Why the underlay was not asked, as by a user without that right.
    #[serde(skip)]
    pub underlay_unasked: Option<String>,
}

/// One echo.
#[derive(Debug, Serialize)]
pub struct Echo {
    /// Through the overlay.
    #[serde(flatten)]
    pub overlay: Answer,
    /// By ICMP to the node's public address, in microseconds; nothing without an answer, which some hosts refuse.
    pub underlay_round_trip_us: Option<f64>,
}

/// Asks as `ping` says, by the daemon at `socket`; `tell` is given a line for each echo.
///
/// # Errors
/// The daemon does not answer, or says that there is no such node.
pub async fn run(
    ping: &arguments::Ping,
    socket: &Path,
    mut tell: impl FnMut(&str),
) -> Result<Report, ClientError> {
    let (mut echoes, mut underlay_unasked) = (Vec::new(), None);
    let mut at = Instant::now();
    for number in 1..=ping.count {
        sleep_until(at).await;
        at += Duration::from_secs_f64(ping.interval);
        let wait = Duration::from_secs_f64(ping.wait);
        let overlay = ask(socket, &ping.peer.to_string(), ping.size, wait).await?;
        if let Some(note) = ping.size.filter(|_| number == 1).and_then(|size| bounded(size, overlay.bytes)) {
            tell(&note);
        }
        let underlay = icmp::ping(overlay.public_ip, wait).await;
        let note = match &underlay {
            Ok(_) => String::new(),
            Err(error) => format!(" ({error})"),
        };
        if let Err(error) = &underlay
            && error.kind() == ErrorKind::PermissionDenied
        {
            underlay_unasked = Some(error.to_string());
        }
        let underlay = underlay.unwrap_or_default().map(|time| time.as_secs_f64() * 1e6);
        let line = format!(
            "{number}: {} ({}), {} bytes: overlay {}, underlay {}{note}",
            overlay.overlay_address,
            overlay.public_ip,
            overlay.bytes,
            time(overlay.round_trip_us),
            time(underlay),
        );
        tell(&line);
        echoes.push(Echo { overlay, underlay_round_trip_us: underlay });
    }
    let mut report = Report { echoes, short_answered: None, underlay_unasked };
    if ping.size.is_some() && !report.any_answered() {
        let short = ask(socket, &ping.peer.to_string(), None, Duration::from_secs_f64(ping.wait)).await?;
        report.short_answered = Some(short.round_trip_us.is_some());
    }
    Ok(report)
}

/// Says that packets of `asked` bytes could not be had, but of `sent`.
fn bounded(asked: usize, sent: usize) -> Option<String> {
    match asked.cmp(&sent) {
        Ordering::Equal => None,
        Ordering::Greater => Some(format!("-s {asked}: shortened to {sent} bytes, the overlay's MTU")),
        Ordering::Less => Some(format!("-s {asked}: lengthened to {sent} bytes, the shortest echo")),
    }
}

/// One echo of `bytes`, or the shortest, to the node that has `peer`.
///
/// # Errors
/// As [`run`].
pub async fn ask(
    socket: &Path,
    peer: &str,
    bytes: Option<usize>,
    patience: Duration,
) -> Result<Answer, ClientError> {
    let mut resource = format!("/v1/ping?peer={peer}&patience_ms={}", patience.as_millis());
    if let Some(bytes) = bytes {
        let _ = write!(resource, "&bytes={bytes}");
    }
    client::get_json(socket, &resource).await
}

impl Report {
    /// Whether any echo came back.
    #[must_use]
    pub fn any_answered(&self) -> bool {
        self.echoes.iter().any(|echo| echo.overlay.round_trip_us.is_some())
    }

    /// The sum, for a terminal, and what it means.
    #[must_use]
    pub fn summary(&self) -> String {
        let overlay: Vec<f64> = self.echoes.iter().filter_map(|echo| echo.overlay.round_trip_us).collect();
        let underlay: Vec<f64> = self.echoes.iter().filter_map(|echo| echo.underlay_round_trip_us).collect();
        let sent = self.echoes.len();
        let of_underlay = match &self.underlay_unasked {
            Some(error) => format!("could not be asked: {error}"),
            None => line(sent, underlay.clone()),
        };
        let mut out = format!("\noverlay  {}\nunderlay {of_underlay}\n", line(sent, overlay.clone()));
        let bytes = self.echoes.first().map_or(0, |echo| echo.overlay.bytes);
        if overlay.is_empty() && self.short_answered == Some(true) {
            let _ = writeln!(
                out,
                "the overlay answers short packets, but none of {bytes} bytes: something on the way carries less, or loses fragments; find the length that passes with -s, and lower the MTU on all nodes"
            );
            return out;
        }
        let meaning = match (overlay.is_empty(), underlay.is_empty()) {
            (true, true) if self.underlay_unasked.is_some() => {
                "the overlay does not answer; as root, the underlay is asked, too"
            }
            (true, false) => {
                "the host answers, its overlay does not: its daemon is down, is no overlayd, or the UDP port is blocked on the way"
            }
            (true, true) => "neither answers: the host is down, or the underlay does not reach it",
            _ if overlay.len() < sent => "the overlay loses packets",
            _ => return out,
        };
        let _ = writeln!(out, "{meaning}");
        out
    }
}

fn line(sent: usize, mut times: Vec<f64>) -> String {
    times.sort_by(f64::total_cmp);
    let lost = 100.0 * (sent - times.len()) as f64 / sent.max(1) as f64;
    let spread = match (times.first(), times.get(times.len() / 2), times.last()) {
        (Some(min), Some(median), Some(max)) => {
            let ms = |us: &f64| us / 1e3;
            format!(", {:.3} / {:.3} / {:.3} ms (min / median / max)", ms(min), ms(median), ms(max))
        }
        _ => String::new(),
    };
    format!("{} of {sent} answered, {lost:.0} % lost{spread}", times.len())
}

fn time(microseconds: Option<f64>) -> String {
    microseconds.map_or_else(|| "no answer".to_owned(), |us| format!("{:.3} ms", us / 1e3))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn an_underlay_that_could_not_be_asked_is_not_said_to_be_silent() {
        let summary_of = |short_answered, underlay_unasked: Option<&str>, underlay_round_trip_us| {
            let overlay = Answer {
                overlay_address: Ipv4Addr::new(10, 1, 63, 0),
                public_ip: Ipv4Addr::new(192, 168, 199, 238),
                bytes: 45,
                round_trip_us: None,
                last_seen_s: None,
                answers: false,
            };
            let echoes = vec![Echo { overlay, underlay_round_trip_us }];
            let underlay_unasked = underlay_unasked.map(str::to_owned);
            Report { echoes, short_answered, underlay_unasked }.summary()
        };
        let summary = |unasked, underlay| summary_of(None, unasked, underlay);
        assert!(summary(None, None).contains("neither answers"));
        assert!(summary(None, Some(7.0)).contains("the host answers, its overlay does not"));
        let unasked = summary(Some("Operation not permitted"), None);
        assert!(unasked.contains("underlay could not be asked: Operation not permitted"), "{unasked}");
        assert!(!unasked.contains("neither answers") && !unasked.contains("host is down"), "{unasked}");
        for (short_answered, says) in
            [(Some(true), "answers short packets, but none of 45 bytes"), (Some(false), "its daemon is down")]
        {
            let text = summary_of(short_answered, None, Some(7.0));
            assert!(text.contains(says), "{text}");
        }
    }

    #[test]
    fn a_length_that_cannot_be_had_is_told() {
        assert_eq!(bounded(1450, 1450), None);
        assert!(bounded(9999, 1450).unwrap().contains("shortened to 1450 bytes, the overlay's MTU"));
        assert!(bounded(7, 45).unwrap().contains("lengthened to 45 bytes"));
    }
}
