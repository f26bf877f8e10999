//! Echoes between daemons, and the one word besides that they have for each other. `overlayctl ping` asks a
//! peer's data plane whether it is there, through the overlay's own encapsulation, and so tells trouble of the
//! overlay from trouble of the underlay.
//!
//! An echo is an inner packet from one overlay device's address to the other's, with an ICMP or ICMPv6 *echo
//! reply* that nobody has asked for: a node that runs flanneld or the kernel's VXLAN hands it to its own
//! stack, which ignores it without a word. It passes the same checks as any packet, and is answered by the
//! worker that receives it; the answer is as long as the question, so that both ways are tried with that length.
//!
//! Where it has room, an answer says which addresses the node has besides ([`announced`]).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, PacketBuilder};
use overlay_wire::ip::{Packet, Version, protocol};
use socket2::Socket;

use crate::announced;
use crate::limits::Limits;
use crate::peer_state::PeerFlag;
use crate::table::{Hop, PeerTable, Route};

/// The ICMP header of an echo, which is the same in both versions.
const ICMP_LEN: usize = 8;
/// What tells our echoes from others, then the kind, then the token.
const MAGIC: [u8; 8] = *b"overlayd";
const BODY_LEN: usize = MAGIC.len() + 1 + 8;
/// The ICMP identifier, for people who look at a capture; it is not what echoes are recognised by.
const IDENTIFIER: u16 = u16::from_be_bytes(*b"ov");
const TTL: u8 = 64;
/// The type of an echo reply: of ICMP, and of ICMPv6.
const ECHO_REPLY: u8 = 0;
const ECHO_REPLY_V6: u8 = 129;

/// The shortest echo of that version, in bytes of the inner packet.
#[must_use]
pub const fn min_len(version: Version) -> usize {
    version.header_len() + ICMP_LEN + BODY_LEN
}

/// The shortest question of that version whose answer has room for addresses.
#[must_use]
pub const fn len_with_addresses(version: Version) -> usize {
    min_len(version) + announced::LEN
}

/// Which half of an exchange an echo is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To be answered.
    Question,
    /// The answer.
    Answer,
    /// Neither: word that super-packets of the receiver's arrive whole here.
    Whole,
}

/// An echo, as it is read from a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Echo {
    /// Question or answer.
    pub kind: Kind,
    /// Chosen by who asks; an answer repeats it.
    pub token: u64,
}

impl Echo {
    /// The echo that `packet` is, if it is one.
    #[must_use]
    pub fn parse(packet: &Packet<'_>) -> Option<Self> {
        let (icmp, reply) = match packet.version() {
            Version::V4 => (protocol::ICMP, ECHO_REPLY),
            Version::V6 => (protocol::ICMPV6, ECHO_REPLY_V6),
        };
        if packet.protocol() != icmp || packet.is_fragment() {
            return None;
        }
        let icmp = packet.payload();
        let body = icmp.get(ICMP_LEN..).filter(|_| icmp[0] == reply)?;
        let (magic, rest) = body.split_at_checked(MAGIC.len())?;
        let (kind, rest) = rest.split_first()?;
        let kind = match kind {
            b'?' => Kind::Question,
            b'!' => Kind::Answer,
            b'w' => Kind::Whole,
            _ => return None,
        };
        let token = u64::from_be_bytes(*rest.first_chunk()?);
        (magic == MAGIC).then_some(Self { kind, token })
    }

    /// The inner packet of `len` bytes that this echo is, from one overlay device's address to another's; none if these
    /// are of different versions.
    ///
    /// `len` is raised to [`min_len`], and cut to what a packet of either version can hold.
    #[must_use]
    pub fn build(self, from: IpAddr, to: IpAddr, len: usize) -> Option<Vec<u8>> {
        self.build_saying(&[], from, to, len)
    }

    /// The same, with `more` after the token, as far as it has room.
    fn build_saying(self, more: &[u8], from: IpAddr, to: IpAddr, len: usize) -> Option<Vec<u8>> {
        let version = Version::of(to);
        let len = len.clamp(min_len(version), usize::from(u16::MAX));
        let body_len = len - version.header_len() - ICMP_LEN;
        let mut body = Vec::with_capacity(body_len);
        body.extend(MAGIC);
        body.push(match self.kind {
            Kind::Question => b'?',
            Kind::Answer => b'!',
            Kind::Whole => b'w',
        });
        body.extend(self.token.to_be_bytes());
        body.extend(more);
        body.resize(body_len, 0);
        let header = IcmpEchoHeader { id: IDENTIFIER, seq: self.token as u16 };
        let mut packet = Vec::with_capacity(len);
        let written = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), TTL)
                .icmpv4(Icmpv4Type::EchoReply(header))
                .write(&mut packet, &body),
            (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), TTL)
                .icmpv6(Icmpv6Type::EchoReply(header))
                .write(&mut packet, &body),
            _ => return None,
        };
        written.expect("no longer than a packet may be, and a Vec takes any write");
        Some(packet)
    }
}

/// Where encapsulated echoes go.
pub trait EchoOut: Send {
    /// Sends `payload` to a peer's end of the tunnel, without waiting.
    ///
    /// # Errors
    /// What the kernel said; the echo is lost.
    fn send(&self, to: SocketAddr, payload: &[u8]) -> io::Result<()>;
}

impl EchoOut for Socket {
    fn send(&self, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        self.send_to_with_flags(payload, &to.into(), libc::MSG_DONTWAIT).map(drop)
    }
}

/// The ports that packets leave by. Each echo takes the next: an answer says that packets get there, and not only
/// what some other port could send.
#[derive(Debug, Default)]
pub struct Ports {
    sockets: Vec<Socket>,
    next: AtomicUsize,
}

impl Ports {
    /// Adds the ports of `sockets`.
    ///
    /// # Errors
    /// `EMFILE` when there is no descriptor to be had.
    pub fn add(&mut self, sockets: &[Socket]) -> io::Result<()> {
        for socket in sockets {
            self.sockets.push(socket.try_clone()?);
        }
        Ok(())
    }
}

impl EchoOut for Ports {
    fn send(&self, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
        let next = self.next.fetch_add(1, Relaxed);
        let count = self.sockets.len().max(1);
        let socket = self.sockets.get(next % count).ok_or(io::ErrorKind::NotConnected)?;
        EchoOut::send(socket, to, payload)
    }
}

/// An answer that has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// That of the question.
    pub token: u64,
    /// The overlay address that it came from.
    pub from: IpAddr,
    /// When.
    pub when: Instant,
    /// The addresses that the node has, as it says; `None` if it says nothing of them.
    pub addresses: Option<Vec<IpAddr>>,
}

/// Told of each answer.
pub type OnAnswer = Arc<dyn Fn(Answer) + Send + Sync>;

/// One worker's part: answers questions, not too many, and passes on answers.
pub struct Echoes {
    out: Box<dyn EchoOut>,
    on_answer: OnAnswer,
}

impl Echoes {
    /// Answers by `out`.
    #[must_use]
    pub fn new(out: Box<dyn EchoOut>, on_answer: OnAnswer) -> Self {
        Self { out, on_answer }
    }

    /// Takes `packet`, which has passed every check, if it is an echo to this node. It is answered as often as
    /// `limits` allows.
    #[must_use]
    pub fn take(&mut self, packet: &Packet<'_>, table: &PeerTable, limits: &Limits) -> bool {
        let Some(echo) = Echo::parse(packet) else { return false };
        let from = packet.src();
        match echo.kind {
            Kind::Answer => (self.on_answer)(Answer {
                token: echo.token,
                from,
                when: Instant::now(),
                addresses: packet.payload().get(ICMP_LEN + BODY_LEN..).and_then(announced::said),
            }),
            Kind::Question if limits.echo() => {
                if let Route::Peer(hop) = table.route(from) {
                    hop.state.set(PeerFlag::Answers, true);
                }
                let answer = Echo { kind: Kind::Answer, ..echo };
                let len = packet.bytes().len();
                let more = if len >= len_with_addresses(packet.version()) {
                    announced::to_say(&table.local().addresses, &table.local().network)
                } else {
                    Vec::new()
                };
                // An answer that cannot be sent is one that is lost on the way.
                let _ = send_saying(self.out.as_ref(), answer, &more, from, len, table);
            }
            Kind::Question => {}
            Kind::Whole => {
                if let Route::Peer(hop) = table.route(from) {
                    hop.state.told_of_whole();
                }
            }
        }
        true
    }

    /// Tells the peer whose pod `src` is that a super-packet of its arrived whole, unless it knows.
    pub fn tell_of_whole(&mut self, src: IpAddr, hop: &Hop, table: &PeerTable) {
        if hop.state.claim_telling()
            && let Some(peer) = table.peers().iter().find(|peer| peer.subnets.contains(src))
            && let Some(to) = table.overlay_address(peer.subnets)
        {
            let echo = Echo { kind: Kind::Whole, token: 0 };
            // Lost, it is told again in a second.
            let _ = send(self.out.as_ref(), echo, to, 0, table);
        }
    }
}

/// Sends `echo` of `len` bytes, or as long as it has to be, to the peer whose overlay device has the address `to`.
///
/// # Errors
/// `HostUnreachable` if no peer has it; otherwise what the kernel said.
pub fn send(out: &dyn EchoOut, echo: Echo, to: IpAddr, len: usize, table: &PeerTable) -> io::Result<()> {
    send_saying(out, echo, &[], to, len, table)
}

fn send_saying(
    out: &dyn EchoOut,
    echo: Echo,
    more: &[u8],
    to: IpAddr,
    len: usize,
    table: &PeerTable,
) -> io::Result<()> {
    let Route::Peer(hop) = table.route(to) else {
        return Err(io::Error::new(io::ErrorKind::HostUnreachable, "no node has that subnet"));
    };
    let from = table.local().overlay_addresses.get(Version::of(to));
    let packet = from.and_then(|from| echo.build_saying(more, from, to, len));
    let packet = packet.ok_or(io::ErrorKind::HostUnreachable)?;
    out.send(hop.to(), &[hop.header(), &packet].concat())
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use std::net::Ipv4Addr;

    use overlay_wire::Format;
    use overlay_wire::samples::udp_packet;

    use super::*;
    use crate::peer_state::PeerFlag;
    use crate::table::tests::{local, peer};

    type Log = Arc<Mutex<Vec<(SocketAddr, Vec<u8>)>>>;

    struct Sent(Log);

    impl EchoOut for Sent {
        fn send(&self, to: SocketAddr, payload: &[u8]) -> io::Result<()> {
            self.0.lock().push((to, payload.to_vec()));
            Ok(())
        }
    }

    const THEIRS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 63, 0));
    const OURS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 1, 9, 0));

    fn echoes() -> (Echoes, Log, Arc<Mutex<Vec<u64>>>) {
        let (sent, heard) = (Log::default(), Arc::<Mutex<Vec<u64>>>::default());
        let on_answer = {
            let heard = Arc::clone(&heard);
            Arc::new(move |answer: Answer| {
                assert_eq!(answer.from, THEIRS);
                heard.lock().push(answer.token);
            })
        };
        (Echoes::new(Box::new(Sent(Arc::clone(&sent))), on_answer), sent, heard)
    }

    fn table() -> PeerTable {
        PeerTable::new(local(Format::FlannelUdp), vec![peer("10.1.63.0/24", "192.168.199.238")])
    }

    #[test]
    fn a_question_is_answered_with_its_token_and_its_length() {
        let (mut echoes, sent, heard) = echoes();
        let question = Echo { kind: Kind::Question, token: 0xfeed_0000_0001 };
        let mut bytes = question.build(THEIRS, OURS, 1472).unwrap();
        assert_eq!(bytes.len(), 1472);
        assert!(echoes.take(&Packet::parse(&mut bytes).unwrap(), &table(), &Limits::default()));
        let (to, mut answer) = sent.lock().remove(0);
        assert_eq!(to, "192.168.199.238:8472".parse().unwrap());
        let answer = Packet::parse(&mut answer).unwrap();
        assert_eq!((answer.src(), answer.dst(), answer.bytes().len()), (OURS, THEIRS, 1472));
        assert_eq!(overlay_wire::checksum::sum(answer.payload()), 0xffff);
        assert_eq!(Echo::parse(&answer), Some(Echo { kind: Kind::Answer, ..question }));
        assert!(heard.lock().is_empty());
    }

    #[test]
    fn an_echo_is_of_the_version_of_its_addresses() {
        let (mut echoes, sent, heard) = echoes();
        let [theirs, ours] = ["fd00:0:0:63::", "fd00:0:0:9::"].map(|text| text.parse().unwrap());
        let question = Echo { kind: Kind::Question, token: 7 };
        for (len, expected) in [(0, min_len(Version::V6)), (1300, 1300)] {
            let mut bytes = question.build(theirs, ours, len).unwrap();
            assert_eq!(bytes.len(), expected);
            assert!(echoes.take(&Packet::parse(&mut bytes).unwrap(), &table(), &Limits::default()));
            let (to, mut answer) = sent.lock().remove(0);
            assert_eq!(to, "192.168.199.238:8472".parse().unwrap(), "whatever carries it");
            let answer = Packet::parse(&mut answer).unwrap();
            assert_eq!((answer.src(), answer.dst(), answer.bytes().len()), (ours, theirs, expected));
            let sum = overlay_wire::checksum::sum(answer.payload());
            assert_eq!(overlay_wire::checksum::add(sum, answer.pseudo_header()), 0xffff);
            assert_eq!(Echo::parse(&answer), Some(Echo { kind: Kind::Answer, ..question }));
        }
        assert!(heard.lock().is_empty());
        assert_eq!(question.build(THEIRS, ours, 0), None, "between two versions");
    }

    #[test]
    fn an_answer_with_room_says_which_addresses_the_node_has() {
        let (table, own) = (table(), IpAddr::from([192, 168, 1, 12]));
        let enough = len_with_addresses(Version::V4);
        for (len, expected) in [(enough, Some(vec![own])), (enough - 1, None)] {
            let (mut echoes, sent, _) = echoes();
            let mut question = Echo { kind: Kind::Question, token: 7 }.build(THEIRS, OURS, len).unwrap();
            assert!(echoes.take(&Packet::parse(&mut question).unwrap(), &table, &Limits::default()));
            let (_, mut answer) = sent.lock().remove(0);
            assert_eq!(answer.len(), len);
            // As whoever has asked reads it.
            let heard = Arc::<Mutex<Option<Answer>>>::default();
            let on_answer = {
                let heard = Arc::clone(&heard);
                Arc::new(move |answer| *heard.lock() = Some(answer))
            };
            let mut asker = Echoes::new(Box::new(Sent(Log::default())), on_answer);
            assert!(asker.take(&Packet::parse(&mut answer).unwrap(), &table, &Limits::default()));
            assert_eq!(heard.lock().take().unwrap().addresses, expected);
        }
    }

    #[test]
    fn who_asks_runs_overlayd() {
        let (mut echoes, ..) = echoes();
        let table = table();
        let asks = || table.hops().next().unwrap().state.has(PeerFlag::Answers);
        for (kind, expected) in [(Kind::Whole, false), (Kind::Question, true)] {
            let mut bytes = Echo { kind, token: 0 }.build(THEIRS, OURS, 0).unwrap();
            assert!(echoes.take(&Packet::parse(&mut bytes).unwrap(), &table, &Limits::default()));
            assert_eq!(asks(), expected);
        }
    }

    #[test]
    fn an_answer_is_passed_on_and_not_answered() {
        let (mut echoes, sent, heard) = echoes();
        let mut bytes = Echo { kind: Kind::Answer, token: 7 }.build(THEIRS, OURS, 0).unwrap();
        assert_eq!(bytes.len(), min_len(Version::V4));
        assert!(echoes.take(&Packet::parse(&mut bytes).unwrap(), &table(), &Limits::default()));
        assert_eq!(*heard.lock(), [7]);
        assert!(sent.lock().is_empty());
    }

    #[test]
    fn word_of_whole_super_packets_is_given_once_and_believed() {
        let (mut echoes, sent, heard) = echoes();
        let table = table();
        let hop = table.hops().next().unwrap();
        let mut tell = || echoes.tell_of_whole("10.1.63.2".parse().unwrap(), hop, &table);
        tell();
        assert!(sent.lock().is_empty(), "told to who may not understand");
        hop.state.set(PeerFlag::Answers, true);
        tell();
        tell();
        let mut words = std::mem::take(&mut *sent.lock());
        assert_eq!(words.len(), 1);
        let word = Packet::parse(&mut words[0].1).unwrap();
        assert_eq!((word.src(), word.dst()), (OURS, THEIRS));

        assert!(hop.state.claim_passthrough(), "a try");
        assert!(!hop.state.claim_passthrough());
        let mut word = Echo { kind: Kind::Whole, token: 0 }.build(THEIRS, OURS, 0).unwrap();
        assert!(echoes.take(&Packet::parse(&mut word).unwrap(), &table, &Limits::default()));
        assert!(hop.state.claim_passthrough() && hop.state.claim_passthrough());
        assert!(sent.lock().is_empty() && heard.lock().is_empty());
    }

    #[test]
    fn echoes_leave_by_all_ports_in_turn() {
        let receiver = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let to = receiver.local_addr().unwrap();
        let lanes = crate::underlay::udp::open_lanes(Ipv4Addr::LOCALHOST.into(), 3).unwrap();
        let mut ports = Ports::default();
        ports.add(&lanes[..1]).unwrap();
        ports.add(&lanes[1..]).unwrap();
        let seen: Vec<_> = (0..6)
            .map(|_| {
                EchoOut::send(&ports, to, b"?").unwrap();
                receiver.recv_from(&mut [0; 8]).unwrap().1.port()
            })
            .collect();
        let expected: Vec<_> =
            lanes.iter().map(|lane| lane.local_addr().unwrap().as_socket().unwrap().port()).collect();
        assert_eq!(seen, [&expected[..], &expected].concat());
    }

    #[test]
    fn a_flood_of_questions_is_not_answered_in_full() {
        let (mut echoes, sent, _) = echoes();
        let mut bytes = Echo { kind: Kind::Question, token: 7 }.build(THEIRS, OURS, 0).unwrap();
        let packet = Packet::parse(&mut bytes).unwrap();
        let limits = Limits::default();
        for _ in 0..2000 {
            assert!(echoes.take(&packet, &table(), &limits), "and goes nowhere else");
        }
        assert!((50..1000).contains(&sent.lock().len()));
    }

    #[test]
    fn nothing_else_is_an_echo() {
        let is_echo = |mut bytes: Vec<u8>| Echo::parse(&Packet::parse(&mut bytes).unwrap()).is_some();
        let echo = Echo { kind: Kind::Question, token: 1 }.build(THEIRS, OURS, 60).unwrap();
        assert!(is_echo(echo.clone()));
        assert!(!is_echo(udp_packet("10.1.63.0", "10.1.9.0", 64, &echo[20..])));
        for (at, value) in [(20, 8), (28, b'O'), (36, b'.')] {
            let mut other = echo.clone();
            other[at] = value;
            assert!(!is_echo(other), "byte {at}");
        }
        for len in 20..min_len(Version::V4) {
            let mut cut = echo[..len].to_vec();
            cut[3] = len as u8;
            cut[10..12].fill(0);
            let sum = !overlay_wire::checksum::sum(&cut[..20]);
            cut[10..12].copy_from_slice(&sum.to_be_bytes());
            assert!(!is_echo(cut), "{len} bytes");
        }
    }
}
