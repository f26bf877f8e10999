//! A pair of workers, one in each direction, made ready to run.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use overlay_sys::wake::StopFlag;
use socket2::Socket;

use crate::admit::SourceCheck;
use crate::answers::{Answers, RawSockets};
use crate::echo::{Echoes, OnAnswer, Ports};
use crate::egress::Egress;
use crate::error::SetupError;
use crate::ingress::Ingress;
use crate::limits::Limits;
use crate::offload::Offloads;
use crate::peer_state::Direction;
use crate::stats::WorkerStats;
use crate::table::SharedTable;
use crate::tun::TunQueue;
use crate::underlay::Underlay;
use crate::underlay::udp::{self, Shared, UdpReceiver, UdpTransmitter};
use crate::underlay::whole::TapQueue;
use crate::underlay::xdp::{Rings, XdpReceiver, XdpTransmitter};
use crate::witness::{Watched, Witness};

/// Source ports of each worker: enough to spread a few busy flows, and few enough that a batch is
/// not torn into many small runs.
const LANES: usize = 4;

/// What all pairs have in common.
pub(super) struct Common {
    /// How many pairs there are.
    pub count: usize,
    pub listen: SocketAddr,
    pub spread_source_ports: bool,
    pub source_check: SourceCheck,
    pub table: SharedTable,
    pub offloads: Arc<Offloads>,
    pub on_answer: OnAnswer,
    pub icmp: RawSockets,
    pub limits: Arc<Limits>,
    pub stop: Arc<StopFlag>,
    pub watched: Arc<Watched>,
}

impl Common {
    pub fn failed(&self, call: &'static str) -> impl Fn(io::Error) -> SetupError + use<> {
        failed(call, self.count)
    }

    fn answers(&self) -> Answers {
        Answers::new(Box::new(self.icmp.clone()), Arc::clone(&self.limits))
    }
}

/// The error of a step that wants for descriptors or threads, for so many pairs.
pub(super) fn failed(call: &'static str, count: usize) -> impl Fn(io::Error) -> SetupError {
    let remedy = "raise the limit of open files or of processes";
    move |source| SetupError { call, object: format!("for {count} workers"), remedy, source }
}

/// What a pair of workers stands between. To be handed over to a later process, there is a copy of it.
#[derive(Debug)]
pub(super) struct Between<S> {
    pub queue: TunQueue,
    pub socket: S,
    pub tap: Option<TapQueue>,
}

impl Between<Shared> {
    pub fn copy(&self) -> io::Result<Between<Socket>> {
        Ok(Between {
            queue: self.queue.try_clone()?,
            socket: self.socket.socket.try_clone()?,
            tap: self.tap.as_ref().map(TapQueue::try_clone).transpose()?,
        })
    }
}

/// Two workers, and what they count.
pub(super) struct Pair {
    pub egress: Egress<TunQueue, Underlay<UdpTransmitter, XdpTransmitter>>,
    pub ingress: Ingress<TunQueue, Underlay<UdpReceiver, XdpReceiver>>,
    pub egress_stats: Arc<WorkerStats>,
    pub ingress_stats: Arc<WorkerStats>,
}

impl Pair {
    /// The pair of this index, by its rings if there are some. The ports that it sends from are added to `all_ports`.
    pub fn build(
        index: usize,
        between: Between<Shared>,
        rings: Option<&mut Rings>,
        common: &Common,
        all_ports: &mut Ports,
    ) -> Result<Self, SetupError> {
        let Between { queue, socket: shared, tap } = between;
        let duplicate = common.failed("duplicate a socket");
        let lanes = if common.spread_source_ports {
            udp::open_lanes(common.listen.ip(), LANES)?
        } else {
            vec![shared.socket.try_clone().map_err(&duplicate)?]
        };
        let mut ports = Ports::default();
        ports.add(&lanes).map_err(&duplicate)?;
        all_ports.add(&lanes).map_err(&duplicate)?;
        let echoes = Echoes::new(Box::new(ports), Arc::clone(&common.on_answer));

        let own = lanes.iter().map(|lane| udp::address(lane).unwrap_or(common.listen)).collect();
        let offloads = || Arc::clone(&common.offloads);
        let transmitter = UdpTransmitter::new(lanes, offloads()).waiting(Arc::clone(&common.stop));
        let transmitter = match tap {
            Some(tap) => transmitter.with_tap(tap),
            None => transmitter,
        };
        let receiver = UdpReceiver::new(shared);
        let (transmitter, receiver) = match rings {
            Some(rings) => rings
                .join(index, transmitter, receiver)
                .map_err(common.failed("have rings beside the sockets"))?,
            None => (Underlay::Sockets(transmitter), Underlay::Sockets(receiver)),
        };

        let witness = |direction, own| Witness::new(direction, Arc::clone(&common.watched), own);
        let (egress_stats, ingress_stats) = (Arc::<WorkerStats>::default(), Arc::<WorkerStats>::default());
        let queue_in = queue.try_clone().map_err(common.failed("duplicate a queue"))?;
        let egress = Egress::new(
            queue,
            transmitter,
            common.table.reader(),
            common.answers(),
            Arc::clone(&egress_stats),
        );
        let ingress = Ingress::new(
            queue_in,
            receiver,
            common.source_check,
            common.table.reader(),
            common.answers().with_echoes(echoes),
            Arc::clone(&ingress_stats),
            offloads(),
        );
        Ok(Self {
            egress: egress.watched_by(witness(Direction::Egress, own)),
            ingress: ingress.watched_by(witness(Direction::Ingress, vec![common.listen])),
            egress_stats,
            ingress_stats,
        })
    }
}
