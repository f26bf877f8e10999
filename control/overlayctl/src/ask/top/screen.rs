//! What the screen shows, and what its keys do.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::time::Duration;

use ratatui::Frame;
use ratatui::crossterm::event::KeyCode;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use overlay_api::peers::{Peer, Peers, rates};
use overlay_api::rate;
use overlay_api::reach::Way;
use overlay_api::stats::Stats;
use overlay_api::status::{LeaseState, Status};
use overlay_support::text::{bits, count, millis, share};

/// What the daemon said at one moment.
pub struct Sample {
    pub status: Status,
    pub peers: Peers,
    pub stats: Stats,
}

/// The screen, between two looks.
pub struct Screen {
    before: Option<Sample>,
    now: Sample,
    /// Why the last look showed nothing.
    problem: Option<String>,
    interval: Duration,
    paused: bool,
    sort: Sort,
    /// The first peer shown.
    scroll: usize,
}

/// What peers are sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    Traffic,
    Drops,
    Seen,
    Subnet,
}

impl Sort {
    fn next(self) -> Self {
        match self {
            Self::Traffic => Self::Drops,
            Self::Drops => Self::Seen,
            Self::Seen => Self::Subnet,
            Self::Subnet => Self::Traffic,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Traffic => "traffic",
            Self::Drops => "drops",
            Self::Seen => "last seen",
            Self::Subnet => "subnet",
        }
    }
}

/// A peer's rates between the two looks.
struct PeerRates<'a> {
    peer: &'a Peer,
    out: f64,
    into: f64,
    drops: f64,
}

impl Screen {
    pub fn new(first: Sample, interval: Duration) -> Self {
        Self {
            before: None,
            now: first,
            problem: None,
            interval,
            paused: false,
            sort: Sort::Traffic,
            scroll: 0,
        }
    }

    pub fn interval(&self) -> Duration {
        self.interval
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Takes another look, or the reason why there is none.
    pub fn take(&mut self, sample: Result<Sample, String>) {
        match sample {
            Ok(sample) => {
                self.before = Some(std::mem::replace(&mut self.now, sample));
                self.problem = None;
            }
            Err(problem) => self.problem = Some(problem),
        }
    }

    /// Does what a key asks for; says whether that is to end.
    pub fn press(&mut self, key: KeyCode) -> bool {
        let peers = self.now.peers.peers.len();
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Char('s') => self.sort = self.sort.next(),
            KeyCode::Char('+') => self.interval = (self.interval * 2).min(SLOWEST),
            KeyCode::Char('-') => self.interval = (self.interval / 2).max(FASTEST),
            KeyCode::Down | KeyCode::Char('j') => self.scroll += 1,
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::PageDown => self.scroll += PAGE,
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(PAGE),
            KeyCode::Home => self.scroll = 0,
            KeyCode::End => self.scroll = peers,
            _ => {}
        }
        self.scroll = self.scroll.min(peers.saturating_sub(1));
        false
    }

    pub fn draw(&self, frame: &mut Frame<'_>) {
        let workers = u16::try_from(self.now.stats.workers.len()).unwrap_or(u16::MAX).min(MOST_WORKERS) + 1;
        let [head, workers, peers, foot] = Layout::vertical([
            Constraint::Length(4),
            Constraint::Length(workers + 1),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.draw_head(frame, head);
        self.draw_workers(frame, workers);
        self.draw_peers(frame, peers);
        self.draw_keys(frame, foot);
    }

    fn elapsed_ms(&self) -> u64 {
        let before = self.before.as_ref().map_or(0, |before| before.peers.at_ms);
        self.now.peers.at_ms.saturating_sub(before)
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let Sample { status, peers, .. } = &self.now;
        let device = status.device.as_ref().map_or("no device", |device| device.name.as_str());
        let state = match status.lease.state {
            LeaseState::Held => Span::raw("held"),
            LeaseState::Saved => Span::styled("saved", WARN),
            LeaseState::Lost => Span::styled("LOST", ALARM),
        };
        let store = match status.store.connected {
            true => Span::raw("ok"),
            false => Span::styled("AWAY", ALARM),
        };
        let node = Line::from(vec![
            Span::styled(device.to_owned(), BOLD),
            Span::raw(format!("  {}  {}  {} ", status.lease.public_ip, peers.backend, status.lease.subnet)),
            state,
            Span::raw("  store "),
            store,
        ]);
        let problem = match (&self.problem, status.host.problems.first().or(status.conflicts.first())) {
            (Some(problem), _) => Line::styled(problem.clone(), ALARM),
            (None, Some(problem)) => Line::styled(problem.clone(), WARN),
            (None, None) if self.paused => Line::styled("paused", WARN),
            (None, None) => Line::raw(""),
        };
        frame.render_widget(Paragraph::new(vec![node, self.traffic(), self.drops(), problem]), area);
    }

    fn traffic(&self) -> Line<'static> {
        let counters = |sample: &Sample| {
            let counters = &sample.status.counters;
            [&counters.egress, &counters.ingress].map(|c| (c.packets, c.bytes))
        };
        let (now, elapsed) = (counters(&self.now), self.elapsed_ms());
        let Some(before) = self.before.as_ref().map(counters) else { return Line::raw("measuring…") };
        let told = |i: usize| {
            let packets = rate(before[i].0, now[i].0, elapsed);
            format!("{} {}", bits(rate(before[i].1, now[i].1, elapsed)), count(packets))
        };
        Line::raw(format!("out {}   in {}", told(0), told(1)))
    }

    fn drops(&self) -> Line<'static> {
        let reasons = |sample: &Sample| {
            let mut all: BTreeMap<String, u64> = BTreeMap::new();
            let drops = &sample.status.drops;
            for (reason, packets) in drops.egress.iter().chain(&drops.ingress) {
                *all.entry(reason.clone()).or_default() += packets;
            }
            all
        };
        let (now, elapsed) = (reasons(&self.now), self.elapsed_ms());
        let before = self.before.as_ref().map(reasons).unwrap_or_else(|| now.clone());
        let mut dropping: Vec<(f64, String)> = now
            .iter()
            .map(|(reason, packets)| {
                (rate(before.get(reason).copied().unwrap_or(0), *packets, elapsed), reason.clone())
            })
            .filter(|(rate, _)| *rate > 0.0)
            .collect();
        dropping.sort_by(|a, b| b.0.total_cmp(&a.0));
        let told: Vec<String> =
            dropping.iter().map(|(rate, reason)| format!("{reason} {}", count(*rate))).collect();
        let total: u64 = now.values().sum();
        match told.is_empty() {
            true => Line::raw(format!("no drops now, {total} so far")),
            false => Line::styled(format!("drops {} ({total} so far)", told.join(", ")), WARN),
        }
    }

    fn draw_workers(&self, frame: &mut Frame<'_>, area: Rect) {
        let before = self.before.as_ref().map(|before| before.stats.by_name()).unwrap_or_default();
        let elapsed = self.elapsed_ms();
        let mut rows: Vec<(f64, Row<'_>)> = self
            .now
            .stats
            .workers
            .iter()
            .map(|worker| {
                let before = before.get(worker.name.as_str()).copied();
                let (packets, bytes, cpu) =
                    before.map_or((0.0, 0.0, None), |before| worker.rates(Some(before), elapsed));
                let since = |now: u64, before: Option<u64>| now.saturating_sub(before.unwrap_or(0)) as f64;
                let batches = since(worker.batches, before.map(|before| before.batches));
                let mean = since(worker.packets, before.map(|before| before.packets)) / batches.max(1.0);
                let cells = [
                    bits(bytes),
                    count(packets),
                    format!("{mean:.1}"),
                    worker.drops.to_string(),
                    cpu.map_or_else(|| "-".to_owned(), share),
                    bar(cpu.unwrap_or(0.0)),
                ];
                let cells = std::iter::once(Cell::from(worker.name.as_str())).chain(cells.map(right));
                (cpu.unwrap_or(0.0), Row::new(cells.collect::<Vec<_>>()))
            })
            .collect();
        // With more workers than there is room for, the busiest are shown.
        if rows.len() > usize::from(MOST_WORKERS) {
            rows.sort_by(|a, b| b.0.total_cmp(&a.0));
            rows.truncate(MOST_WORKERS.into());
        }
        let widths = [12, 13, 10, 9, 9, 6, 12].map(Constraint::Length);
        let head = ["WORKER", "RATE", "PACKETS", "BATCH", "DROPS", "CPU", ""];
        let table = Table::new(rows.into_iter().map(|(_, row)| row), widths).header(header(&head));
        frame.render_widget(table, area);
    }

    fn draw_peers(&self, frame: &mut Frame<'_>, area: Rect) {
        let sorted = self.sorted();
        let rows = sorted.iter().skip(self.scroll).take(usize::from(area.height)).map(|rates| {
            let peer = rates.peer;
            let seen = match (peer.way, peer.last_seen_ms) {
                (Way::Tunnel, Some(ms)) => millis(ms),
                (Way::Tunnel, None) => "never".to_owned(),
                // What goes plain does not pass us.
                (way, _) => way.to_string(),
            };
            let cells = [bits(rates.out), bits(rates.into), count(rates.drops), seen];
            let names = [peer.subnet.to_string(), peer.public_ip.to_string()].map(Cell::from);
            let row = Row::new(names.into_iter().chain(cells.map(right)).collect::<Vec<_>>());
            if peer.problem.is_some() || rates.drops > 0.0 { row.style(WARN) } else { row }
        });
        let widths = [18, 15, 12, 12, 9, 8].map(Constraint::Length);
        let subnet = format!("{} PEERS", sorted.len());
        let head = [subnet.as_str(), "PUBLIC IP", "OUT", "IN", "DROPS", "SEEN"];
        frame.render_widget(Table::new(rows, widths).header(header(&head)), area);
    }

    fn sorted(&self) -> Vec<PeerRates<'_>> {
        let before = self.before.as_ref().map(|before| before.peers.by_name());
        let elapsed = self.elapsed_ms();
        let mut all: Vec<PeerRates<'_>> = self
            .now
            .peers
            .peers
            .iter()
            .map(|peer| {
                let Some(before) = &before else {
                    return PeerRates { peer, out: 0.0, into: 0.0, drops: 0.0 };
                };
                let before = before.get(&(peer.subnet, peer.public_ip)).copied();
                let (_, out) = rates(before.map(|b| &b.egress), &peer.traffic.egress, elapsed);
                let (_, into) = rates(before.map(|b| &b.ingress), &peer.traffic.ingress, elapsed);
                let dropped = |t: &overlay_api::status::Directions<overlay_api::peers::Traffic>| {
                    t.egress.drops + t.ingress.drops
                };
                let drops = rate(before.map_or(0, dropped), dropped(&peer.traffic), elapsed);
                PeerRates { peer, out, into, drops }
            })
            .collect();
        // They come by subnet, and stay so among equals.
        match self.sort {
            Sort::Traffic => all.sort_by(|a, b| (b.out + b.into).total_cmp(&(a.out + a.into))),
            Sort::Drops => all.sort_by(|a, b| b.drops.total_cmp(&a.drops)),
            Sort::Seen => all.sort_by_key(|rates| Reverse(rates.peer.last_seen_ms.map_or(u64::MAX, |ms| ms))),
            Sort::Subnet => {}
        }
        all
    }

    fn draw_keys(&self, frame: &mut Frame<'_>, area: Rect) {
        let pause = if self.paused { "go on" } else { "pause" };
        let keys = [
            ("q", "quit".to_owned()),
            ("p", pause.to_owned()),
            ("s", format!("sort: {}", self.sort.label())),
            ("↑↓", "scroll".to_owned()),
            ("+-", format!("every {} s", self.interval.as_secs_f64())),
        ];
        let spans = keys
            .into_iter()
            .flat_map(|(key, what)| [Span::styled(format!(" {key} "), KEY), Span::raw(format!(" {what}  "))]);
        frame.render_widget(Line::from(spans.collect::<Vec<_>>()), area);
    }
}

fn header<'a>(names: &[&'a str]) -> Row<'a> {
    let cells = names.iter().enumerate().map(|(i, name)| {
        let left = i == 0 || *name == "PUBLIC IP";
        if left { Cell::from(*name) } else { right((*name).to_owned()) }
    });
    Row::new(cells.collect::<Vec<_>>()).style(BOLD)
}

fn right<'a>(text: String) -> Cell<'a> {
    Cell::from(Line::raw(text).alignment(Alignment::Right))
}

/// A part of a processor, drawn.
fn bar(part: f64) -> String {
    let full = (part.clamp(0.0, 1.0) * 10.0).round() as usize;
    format!("{}{}", "█".repeat(full), "░".repeat(10 - full))
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const WARN: Style = Style::new().fg(Color::Yellow);
const ALARM: Style = Style::new().fg(Color::Red).add_modifier(Modifier::BOLD);
const KEY: Style = Style::new().add_modifier(Modifier::REVERSED);
/// More would leave no room for peers on 24 lines.
const MOST_WORKERS: u16 = 8;
const PAGE: usize = 10;
const FASTEST: Duration = Duration::from_millis(250);
const SLOWEST: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use overlay_api::peers::Traffic;
    use overlay_api::stats::Worker;
    use overlay_api::status::Directions;

    fn sample(at_ms: u64) -> Sample {
        let peer = |last: u8, speed: u64, drops: u64| Peer {
            subnet: format!("10.1.{last}.0/24").parse().unwrap(),
            public_ip: [192, 168, 199, last].into(),
            vtep_mac: None,
            way: Way::Tunnel,
            problem: None,
            path_mtu: None,
            answers: false,
            last_seen_ms: (last != 3).then_some(u64::from(last) * 1000),
            traffic: Directions {
                egress: Traffic { packets: speed * at_ms, bytes: 1000 * speed * at_ms, drops: drops * at_ms },
                ingress: Traffic::default(),
            },
        };
        let mut status = overlay_api::example::example();
        status.host.problems.clear();
        status.conflicts.clear();
        status.counters.egress.bytes = 125 * at_ms;
        status.drops.ingress.insert("wrong_vni".to_owned(), at_ms / 100);
        let worker = |name: &str, cpu_ms| Worker {
            name: name.into(),
            packets: 8 * at_ms,
            bytes: 1000 * at_ms,
            batches: at_ms,
            super_packets: 0,
            drops: 0,
            icmp_sent: 0,
            cpu_ms: Some(cpu_ms),
        };
        Sample {
            status,
            peers: Peers {
                at_ms,
                backend: "vxlan".into(),
                peers: vec![peer(1, 1, 0), peer(2, 2, 0), peer(3, 0, 1)],
            },
            stats: Stats { at_ms, workers: vec![worker("egress-0", at_ms / 2), worker("ingress-0", at_ms)] },
        }
    }

    fn lines(screen: &Screen) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| screen.draw(frame)).unwrap();
        let buffer = terminal.backend().buffer();
        let cells = buffer.content.chunks(80);
        cells
            .map(|row| row.iter().map(|cell| cell.symbol()).collect::<String>().trim_end().to_owned())
            .collect()
    }

    fn peers(screen: &Screen) -> Vec<u8> {
        let of = |line: &String| line.strip_prefix("10.1.")?.split('.').next()?.parse().ok();
        lines(screen).iter().filter_map(of).collect()
    }

    #[test]
    fn all_is_to_be_seen_on_80_by_24() {
        let mut screen = Screen::new(sample(1_000), Duration::from_secs(1));
        assert!(lines(&screen)[1].contains("measuring"));
        screen.take(Ok(sample(3_000)));
        let lines = lines(&screen);
        let text = lines.join("\n");
        assert!(lines[0] == "flannel.1  192.168.1.12  vxlan  10.1.9.0/24 held  store ok", "{text}");
        assert!(lines[1].starts_with("out 1.0 Mbit/s"), "{text}");
        assert_eq!(lines[2], "drops wrong_vni 10 /s (30 so far)");
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(
            words(&lines[5]),
            ["egress-0", "8.0", "Mbit/s", "8.0", "k/s", "8.0", "0", "50", "%", "█████░░░░░"]
        );
        let peer = lines.iter().find(|line| line.starts_with("10.1.3.0/24")).unwrap();
        assert_eq!(
            words(peer),
            ["10.1.3.0/24", "192.168.199.3", "0", "bit/s", "0", "bit/s", "1.0", "k/s", "never"]
        );
        assert!(lines[23].contains("quit") && lines[23].contains("sort: traffic"), "{text}");
        assert!(lines[23].contains("every 1 s"), "whole, on the last line: {text}");
    }

    #[test]
    fn keys_sort_scroll_pause_and_end() {
        let mut screen = Screen::new(sample(1_000), Duration::from_secs(1));
        screen.take(Ok(sample(2_000)));
        assert_eq!(peers(&screen), [2, 1, 3], "by traffic");
        for expected in [[3, 1, 2], [3, 2, 1], [1, 2, 3], [2, 1, 3]] {
            assert!(!screen.press(KeyCode::Char('s')));
            assert_eq!(peers(&screen), expected);
        }
        screen.press(KeyCode::Down);
        assert_eq!(peers(&screen), [1, 3]);
        screen.press(KeyCode::End);
        assert_eq!(peers(&screen), [3]);
        screen.press(KeyCode::Home);
        screen.press(KeyCode::Up);
        assert_eq!(peers(&screen).len(), 3);
        screen.press(KeyCode::Char('p'));
        assert!(screen.is_paused() && lines(&screen)[3].contains("paused"));
        screen.press(KeyCode::Char('+'));
        assert_eq!(screen.interval(), Duration::from_secs(2));
        for _ in 0..9 {
            screen.press(KeyCode::Char('-'));
        }
        assert_eq!(screen.interval(), FASTEST);
        assert!(screen.press(KeyCode::Char('q')) && screen.press(KeyCode::Esc));
    }

    #[test]
    fn a_daemon_that_does_not_answer_is_said_and_awaited() {
        let mut screen = Screen::new(sample(1_000), Duration::from_secs(1));
        screen.take(Err("no daemon answers".to_owned()));
        assert!(lines(&screen)[3].contains("no daemon answers"));
        assert_eq!(peers(&screen).len(), 3, "the last look stays");
        screen.take(Ok(sample(2_000)));
        assert_eq!(lines(&screen)[3], "");
    }
}
