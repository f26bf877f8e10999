//! Requests to an etcd cluster: which endpoint is asked, by whom, and over what connection.
//!
//! There is one client for each endpoint rather than one over all: a call stays with the endpoint
//! that answered last and goes to the next when that one fails, so that a dead endpoint costs one
//! attempt and not a share of all calls. A client is made when it is first needed, since making one
//! logs its user in; it is made anew when its token is refused or the certificates have changed.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use etcd_client::{Client, ConnectOptions, Error};
use parking_lot::Mutex;
use rustls::ClientConfig;
use tonic::transport::Endpoint as Transport;
use tracing::{info, warn};

use super::access::{Access, Material};
use super::tls::{self, LastWord};
use crate::meters::StoreMeter;
use crate::store::lease_store::StoreError;
use overlay_support::patient::{PATIENCE, Patient};

/// The endpoints of one cluster.
pub(super) struct Cluster {
    endpoints: Vec<Endpoint>,
    /// The endpoint that answered last.
    current: AtomicUsize,
    access: Access,
    /// The certificates that the clients were made with.
    material: Mutex<Option<(Material, Arc<ClientConfig>)>>,
    files: Patient<Result<Material, String>>,
    meter: StoreMeter,
}

struct Endpoint {
    url: String,
    client: Mutex<Option<Client>>,
    last_word: LastWord,
    /// Whether it has ever answered: then it is spoken to as it wants to be.
    has_answered: AtomicBool,
}

impl Cluster {
    /// The cluster that is reached by any of `urls`. Nothing is sent and no file is read yet.
    pub(super) async fn new(
        urls: Vec<String>,
        access: Access,
        meter: StoreMeter,
    ) -> Result<Self, StoreError> {
        if urls.is_empty() {
            return Err(StoreError::new("use etcd", "no endpoint is given"));
        }
        for url in &urls {
            // Without a user this connects to nothing, and checks the URL.
            let plain = url.replacen("https://", "http://", 1);
            Client::connect([plain], None)
                .await
                .map_err(|error| StoreError::new(format!("use etcd endpoint {url:?}"), reason(&error)))?;
            if access.wants_tls() && !is_tls(url) {
                warn!(
                    endpoint = url,
                    "certificates are given, but this endpoint is not encrypted: is https:// meant?"
                );
            }
        }
        let endpoint = |url| Endpoint {
            url,
            client: Mutex::default(),
            last_word: LastWord::default(),
            has_answered: AtomicBool::new(false),
        };
        Ok(Self {
            endpoints: urls.into_iter().map(endpoint).collect(),
            current: AtomicUsize::new(0),
            access,
            material: Mutex::default(),
            files: Patient::default(),
            meter,
        })
    }

    /// The URLs, in the order given.
    pub(super) fn urls(&self) -> impl Iterator<Item = &str> {
        self.endpoints.iter().map(|endpoint| endpoint.url.as_str())
    }

    /// Which endpoint answered last.
    pub(super) fn current(&self) -> usize {
        self.current.load(Ordering::Relaxed)
    }

    /// The URL of an endpoint.
    pub(super) fn url(&self, index: usize) -> &str {
        &self.endpoints[index].url
    }

    /// Reads the certificates, if TLS is spoken at all.
    pub(super) async fn load(&self) -> Result<(), String> {
        self.reload().await.map(drop)
    }

    /// Makes one request: at the endpoint that answered last, then at each other, and at a lone one
    /// twice, since a connection may have died unnoticed; and all over again if the certificates have
    /// changed. The request is told whether it is repeated.
    pub(super) async fn call<T, F>(
        &self,
        action: &str,
        request: impl Fn(Client, bool) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.meter.time(action, self.call_or_reload(action, request)).await
    }

    async fn call_or_reload<T, F>(
        &self,
        action: &str,
        request: impl Fn(Client, bool) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut reasons = match self.attempt(&request, false).await {
            Ok(answer) => return Ok(answer),
            Err(reasons) => reasons,
        };
        match self.reload().await {
            Ok(false) => {}
            Ok(true) => match self.attempt(&request, true).await {
                Ok(answer) => return Ok(answer),
                Err(with_new) => reasons = with_new,
            },
            Err(problem) if reasons.contains(&problem) => {}
            Err(problem) => reasons.push(problem),
        }
        Err(StoreError::new(action, reasons.join("; ")))
    }

    /// Asks each endpoint in turn; gives all that went wrong if none answers.
    async fn attempt<T, F>(
        &self,
        request: &impl Fn(Client, bool) -> F,
        repeated: bool,
    ) -> Result<T, Vec<String>>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut reasons: Vec<String> = Vec::new();
        let first = self.current();
        for attempt in 0..self.endpoints.len().max(2) {
            let index = (first + attempt) % self.endpoints.len();
            let endpoint = &self.endpoints[index];
            let asked = self.ask(endpoint, request, repeated || attempt > 0);
            let reason = match tokio::time::timeout(TIMEOUT, asked).await {
                Ok(Ok(answer)) => {
                    self.current.store(index, Ordering::Relaxed);
                    endpoint.has_answered.store(true, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(Err(reason)) => reason,
                Err(_) => format!(
                    "{}: no answer within {} s (is that host up, and does no firewall stand in the way? see --etcd-endpoints)",
                    endpoint.url,
                    TIMEOUT.as_secs()
                ),
            };
            if !reasons.contains(&reason) {
                reasons.push(reason);
            }
        }
        Err(reasons)
    }

    /// Asks one endpoint, logging in again if the server does not know our token any more: it forgets
    /// one that was not used for minutes, and all of them when it restarts.
    async fn ask<T, F>(
        &self,
        endpoint: &Endpoint,
        request: &impl Fn(Client, bool) -> F,
        repeated: bool,
    ) -> Result<T, String>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let mut logged_in_anew = false;
        loop {
            let client = self.client(endpoint).await?;
            match request(client, repeated).await {
                Ok(answer) => return Ok(answer),
                Err(error)
                    if self.access.user.is_some() && !logged_in_anew && says_any(&error, &TOKEN_REFUSED) =>
                {
                    endpoint.set_client(None);
                    logged_in_anew = true;
                }
                Err(error) => return Err(self.explained(endpoint, &error)),
            }
        }
    }

    async fn client(&self, endpoint: &Endpoint) -> Result<Client, String> {
        if let Some(client) = endpoint.client() {
            return Ok(client);
        }
        let (options, url) = (connect_options(), &endpoint.url);
        let tls = if is_tls(url) { Some(self.tls().await?) } else { None };
        let connect = async |options: ConnectOptions| match &tls {
            Some(config) => {
                let last_word = endpoint.last_word.clone();
                tls::connect(url, tended, options, Arc::clone(config), last_word).await
            }
            None => Client::connect([url], Some(options)).await,
        };
        let made = match &self.access.user {
            None => connect(options).await,
            Some(user) => {
                let named = options.clone().with_user(&user.name, &user.password.0);
                match connect(named).await {
                    // As etcd's own client does: a user is no hindrance where none is asked for.
                    Err(error) if says_any(&error, &["authentication is not enabled"]) => {
                        connect(options).await
                    }
                    made => made,
                }
            }
        };
        let client = made.map_err(|error| self.explained(endpoint, &error))?;
        endpoint.set_client(Some(client.clone()));
        Ok(client)
    }

    /// The certificates in use, read now if they have not been yet.
    async fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let in_use = || self.material.lock();
        if let Some((_, config)) = &*in_use() {
            return Ok(Arc::clone(config));
        }
        let material = self.read().await?;
        let config = usable(&material)?;
        *in_use() = Some((material, Arc::clone(&config)));
        Ok(config)
    }

    /// What the files of the certificates hold now.
    async fn read(&self) -> Result<Material, String> {
        let access = self.access.clone();
        self.files.read(move || access.read()).await.unwrap_or_else(|| {
            let patience = PATIENCE.as_millis();
            Err(format!("the certificates' files are not read within {patience} ms: does their disk answer?"))
        })
    }

    /// Takes new certificates into use if the files have changed; whether they have. Files that
    /// cannot be used, as between the two steps of replacing a pair, change nothing.
    async fn reload(&self) -> Result<bool, String> {
        if !self.urls().any(is_tls) {
            return Ok(false);
        }
        let new = self.read().await?;
        let in_use = || self.material.lock();
        if in_use().as_ref().is_some_and(|(material, _)| *material == new) {
            return Ok(false);
        }
        let config = usable(&new)?;
        if in_use().replace((new, config)).is_some() {
            info!("the certificates for etcd have changed: connecting anew");
        }
        for endpoint in &self.endpoints {
            endpoint.set_client(None);
        }
        Ok(true)
    }

    /// What went wrong at an endpoint, and what to do about it where that is known.
    pub(super) fn explain(&self, index: usize, error: &Error) -> String {
        self.explained(&self.endpoints[index], error)
    }

    fn explained(&self, endpoint: &Endpoint, error: &Error) -> String {
        let mut text = reason(error);
        if let Some(last_word) = endpoint.last_word.take().filter(|word| !text.contains(word)) {
            text = format!("{text}: {last_word}");
        }
        let remedy = remedy(&text, endpoint, &self.access);
        format!("{}: {text}{remedy}", endpoint.url)
    }
}

impl Endpoint {
    fn client(&self) -> Option<Client> {
        self.client.lock().clone()
    }

    fn set_client(&self, client: Option<Client>) {
        *self.client.lock() = client;
    }
}

fn connect_options() -> ConnectOptions {
    ConnectOptions::new()
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_keep_alive(PING_INTERVAL, PING_TIMEOUT)
        // etcd hangs up on a client that pings without a request open.
        .with_keep_alive_while_idle(false)
        // A member cut off from its cluster must say so rather than let a watch wait for ever.
        .with_require_leader(true)
}

/// The same for a connection that is not made by the client.
fn tended(transport: Transport) -> Transport {
    transport
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(false)
}

/// What certificates make, if key and certificate belong together.
fn usable(material: &Material) -> Result<Arc<ClientConfig>, String> {
    tls::config(material).map_err(|error| format!("the certificates cannot be used: {error}"))
}

fn is_tls(url: &str) -> bool {
    url.starts_with("https://")
}

fn says_any(error: &Error, texts: &[&str]) -> bool {
    let said = reason(error);
    texts.iter().any(|text| said.contains(text))
}

/// Whether an answer is longer than we take (4 MiB).
pub(super) fn is_too_long(error: &Error) -> bool {
    says_any(error, &["decoded message length too large"])
}

/// What to do about an error that says `text`, in brackets; nothing where nothing is known.
fn remedy(text: &str, endpoint: &Endpoint, access: &Access) -> String {
    let (tls, is_new) = (is_tls(&endpoint.url), !endpoint.has_answered.load(Ordering::Relaxed));
    let applies = |when: When| match when {
        When::Always => true,
        When::Plain => !tls && is_new,
        When::Tls => tls && is_new,
        When::Trusting(named) => named == access.ca.is_some(),
        When::Known(named) => named == access.identity.is_some(),
    };
    let found = REMEDIES.iter().find(|(said, when, _)| text.contains(said) && applies(*when));
    let user = access.user.as_ref().map_or("", |user| user.name.as_str());
    found.map_or(String::new(), |(_, _, remedy)| format!(" ({})", remedy.replace("USER", user)))
}

/// The error in one line, down to the cause that a person can act on.
fn reason(error: &Error) -> String {
    let (mut text, mut cause) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), status.source()),
        Error::WatchError(text) => (text.clone(), None),
        Error::TransportError(error) => (error.to_string(), error.source()),
        other => (other.to_string(), other.source()),
    };
    while let Some(error) = cause {
        let more = error.to_string();
        if more != "transport error" && !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// What etcd says of a token that it does not know, that is older than a change of its users, or
/// that is missing because authentication was turned on since.
const TOKEN_REFUSED: [&str; 3] =
    ["invalid auth token", "revision of auth store is old", "user name is empty"];
/// Where a remedy is one.
#[derive(Clone, Copy)]
enum When {
    Always,
    /// At an `http://` endpoint that has not answered yet. One that has is restarting.
    Plain,
    /// At an `https://` endpoint that has not answered yet.
    Tls,
    /// Whether --etcd-cafile is given.
    Trusting(bool),
    /// Whether --etcd-certfile is given.
    Known(bool),
}

const NO_TLS: &str = "does it speak TLS at all? If not, http:// is meant";
const ONLY_TLS: &str = "does it speak TLS only? Then https:// is meant";
const WANTS_CERTIFICATE: &str = "the server wants --etcd-certfile and --etcd-keyfile";
const REFUSES_CERTIFICATE: &str =
    "the server refuses --etcd-certfile: is it for clients, and by an authority that the server trusts?";

/// What to do when etcd or TLS say this. The first that applies counts.
const REMEDIES: [(&str, When, &str); 35] = [
    (
        "database space exceeded",
        When::Always,
        "etcd is full and takes no writes: 'etcdctl compact REVISION', 'etcdctl defrag', 'etcdctl alarm disarm', or a larger --quota-backend-bytes",
    ),
    (
        "Connection refused",
        When::Always,
        "nothing listens there: is etcd running, and is it at --etcd-endpoints?",
    ),
    (
        "etwork is unreachable",
        When::Always,
        "this host has no route there: is its interface up, and the address at --etcd-endpoints right? See 'ip route get'",
    ),
    (
        "o route to host",
        When::Always,
        "nobody has that address, or a firewall refuses the way there: is the host up, and --etcd-endpoints right?",
    ),
    (
        "deadline has elapsed",
        When::Always,
        "nothing answers there: is the host up, does no firewall stand in the way, and is --etcd-endpoints right?",
    ),
    (
        "failed to lookup address",
        When::Always,
        "this host knows no address of that name: see --etcd-endpoints",
    ),
    (
        "invalid user ID or password",
        When::Always,
        "--etcd-username=USER and --etcd-password are not what etcd knows",
    ),
    (
        "permission denied",
        When::Always,
        "the role of user 'USER' needs readwrite on the prefix: etcdctl role grant-permission",
    ),
    (
        "user name is empty",
        When::Always,
        "etcd wants to know who asks: give --etcd-username and --etcd-password",
    ),
    ("not valid for name", When::Always, "the server's certificate is for other addresses than this"),
    (
        "certificate expired",
        When::Always,
        "the server's certificate has run out, or this host's clock is wrong",
    ),
    (
        "certificate not valid yet",
        When::Always,
        "the server's certificate is not valid yet, or this host's clock is wrong",
    ),
    (
        "CaUsedAsEndEntity",
        When::Trusting(true),
        "the server's certificate is an authority's, and not the one in --etcd-cafile: put it there, or give the server one signed by it",
    ),
    (
        "CaUsedAsEndEntity",
        When::Always,
        "the server's certificate is an authority's own: give it as --etcd-cafile",
    ),
    (
        "invalid peer certificate",
        When::Trusting(true),
        "the server's certificate is not by an authority of --etcd-cafile",
    ),
    (
        "invalid peer certificate",
        When::Always,
        "this host's own authorities do not vouch for the server's certificate: give its authority as --etcd-cafile",
    ),
    ("no native certs found", When::Always, "this host has no authorities of its own: give --etcd-cafile"),
    ("fatal alert: CertificateRequired", When::Known(false), WANTS_CERTIFICATE),
    ("fatal alert: CertificateRequired", When::Known(true), REFUSES_CERTIFICATE),
    // Of a server that wants a certificate and has none, Go says so, too.
    ("fatal alert: BadCertificate", When::Known(false), WANTS_CERTIFICATE),
    ("fatal alert: BadCertificate", When::Known(true), REFUSES_CERTIFICATE),
    ("fatal alert: Certificate", When::Known(true), REFUSES_CERTIFICATE),
    ("fatal alert: UnsupportedCertificate", When::Known(true), REFUSES_CERTIFICATE),
    (
        "fatal alert: UnknownCA",
        When::Known(true),
        "the server does not know the authority of --etcd-certfile: is it in the server's --trusted-ca-file?",
    ),
    (
        "fatal alert: DecryptError",
        When::Known(true),
        "do --etcd-certfile and --etcd-keyfile belong together?",
    ),
    ("fatal alert: HandshakeFailure", When::Known(false), WANTS_CERTIFICATE),
    (
        "fatal alert: HandshakeFailure",
        When::Always,
        "server and client have no cipher in common: see etcd's --cipher-suites",
    ),
    ("fatal alert: ProtocolVersion", When::Always, "the server speaks an older TLS than 1.2"),
    // Of another that is not TLS, and no accident.
    ("InvalidContentType", When::Always, NO_TLS),
    ("onnection reset", When::Tls, NO_TLS),
    ("handshake eof", When::Tls, NO_TLS),
    ("onnection reset", When::Plain, ONLY_TLS),
    ("onnection closed", When::Plain, ONLY_TLS),
    ("http2 error", When::Plain, ONLY_TLS),
    ("roken pipe", When::Plain, ONLY_TLS),
];
/// For one attempt at one request. A healthy cluster answers in milliseconds, one that elects a leader in one or two seconds.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Leaves time, within `TIMEOUT`, for nothing but an attempt that was going to fail anyway.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// etcd refuses pings that come more often than every 5 s (`--grpc-keepalive-min-time`).
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// A server that does not answer a ping for this long is dead to a watch.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
