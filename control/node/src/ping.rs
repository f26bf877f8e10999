//! `overlayctl ping`: echoes that are under way, each waited for by whoever asked.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use overlay::echo::{Answer, OnAnswer};
use overlay::forwarder::Forwarder;
use overlay::table::PeerTable;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

/// Questions that have not been answered yet, by token.
#[derive(Debug, Default)]
pub struct Pings(Mutex<HashMap<u64, Waiting>>);

#[derive(Debug)]
struct Waiting {
    peer: IpAddr,
    answered: oneshot::Sender<Answer>,
}

impl Pings {
    /// What the data plane tells answers to.
    #[must_use]
    pub fn on_answer(self: &Arc<Self>) -> OnAnswer {
        let pings = Arc::clone(self);
        Arc::new(move |answer| pings.answered(answer))
    }

    /// Asks the node whose overlay device has the address `peer`, with an inner packet of `len` bytes.
    ///
    /// # Errors
    /// `HostUnreachable` if no node has that address; otherwise what the kernel said to sending.
    pub fn ask(
        self: &Arc<Self>,
        forwarder: &Forwarder,
        table: &PeerTable,
        peer: IpAddr,
        len: usize,
    ) -> io::Result<Ping> {
        self.ask_by(|token| forwarder.ask(peer, token, len, table), peer)
    }

    /// Asks `peer` by whatever sends the question with a token.
    ///
    /// # Errors
    /// What sending came to.
    pub fn ask_by(
        self: &Arc<Self>,
        send: impl FnOnce(u64) -> io::Result<()>,
        peer: IpAddr,
    ) -> io::Result<Ping> {
        // Not to be guessed: only who has seen the question can answer it.
        let token: u64 = rand::random();
        let (answered, answer) = oneshot::channel();
        self.waiting().insert(token, Waiting { peer, answered });
        let ping = Ping { pings: Arc::clone(self), token, asked: Instant::now(), answer };
        send(token)?;
        Ok(ping)
    }

    fn answered(&self, answer: Answer) {
        let mut waiting = self.waiting();
        if waiting.get(&answer.token).is_some_and(|waiting| waiting.peer == answer.from)
            && let Some(Waiting { answered, .. }) = waiting.remove(&answer.token)
        {
            // Whoever asked may have lost patience in this very moment.
            let _ = answered.send(answer);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.0.lock()
    }
}

/// A question that has been sent. It does not keep the node that sent it.
#[derive(Debug)]
pub struct Ping {
    pings: Arc<Pings>,
    token: u64,
    asked: Instant,
    answer: oneshot::Receiver<Answer>,
}

impl Ping {
    /// How long the answer took; `None` if it does not come within `patience`.
    pub async fn answer(self, patience: Duration) -> Option<Duration> {
        let asked = self.asked;
        self.words(patience).await.map(|answer| answer.when - asked)
    }

    /// The answer, with what it says.
    pub async fn words(mut self, patience: Duration) -> Option<Answer> {
        let answer = tokio::time::timeout(patience, &mut self.answer).await;
        answer.ok().and_then(Result::ok)
    }
}

impl Drop for Ping {
    fn drop(&mut self) {
        self.pings.waiting().remove(&self.token);
    }
}
