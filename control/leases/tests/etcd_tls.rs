//! TLS between etcd and its store: the certificates that flannel takes are taken, and what is wrong is told with a
//! remedy that is one.

#[allow(dead_code, reason = "shared with the contract of all stores, which uses the rest")]
mod stores;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use overlay_leases::meters::StoreMeter;
use overlay_leases::store::{Access, EtcdStore, IdentityFiles, LeaseStore};
use stores::{Etcd, PATIENCE, PREFIX};

/// Certificates in files.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let (authority, key) = files.write_own("authority", IsCa::Ca(BasicConstraints::Unconstrained));
        files.write_own("self-ca", IsCa::Ca(BasicConstraints::Unconstrained));
        files.write_own("self-leaf", IsCa::ExplicitNoCa);
        let issuer = Issuer::new(authority, key);
        let key = KeyPair::generate().unwrap();
        let leaf = params("leaf", IsCa::NoCa).signed_by(&key, &issuer).unwrap();
        files.write("leaf", &leaf.pem(), &key);
        for name in ["p521", "p521-key"] {
            let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/certificates");
            fs::copy(fixture.join(format!("{name}.pem")), files.path(name)).unwrap();
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.pem"))
    }

    fn write(&self, name: &str, certificate: &str, key: &KeyPair) {
        fs::write(self.path(name), certificate).unwrap();
        fs::write(self.path(&format!("{name}-key")), key.serialize_pem()).unwrap();
    }

    fn write_own(&self, name: &str, is_ca: IsCa) -> (CertificateParams, KeyPair) {
        let (params, key) = (params(name, is_ca), KeyPair::generate().unwrap());
        self.write(name, &params.self_signed(&key).unwrap().pem(), &key);
        (params, key)
    }

    fn identity(&self, name: &str) -> IdentityFiles {
        IdentityFiles { certificate: self.path(name), key: self.path(&format!("{name}-key")) }
    }

    fn server(&self, certificate: &str, flags: &[String]) -> Etcd {
        let IdentityFiles { certificate, key } = self.identity(certificate);
        let own = [format!("--cert-file={}", certificate.display()), format!("--key-file={}", key.display())];
        let flags: Vec<&str> = own.iter().chain(flags).map(String::as_str).collect();
        Etcd::start_secured(&flags)
    }
}

fn params(name: &str, is_ca: IsCa) -> CertificateParams {
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = is_ca;
    params
}

/// What a store that trusts `ca` hears at `url`.
async fn ask(url: &str, ca: Option<PathBuf>, identity: Option<IdentityFiles>) -> Result<(), String> {
    let access = Access { ca, identity, ..Access::default() };
    let meter = StoreMeter::default();
    let store = EtcdStore::connect_as(vec![url.to_owned()], PREFIX.to_owned(), access, meter).await.unwrap();
    heard(&store).await
}

/// What a store hears of its server, once that has started.
async fn heard(store: &EtcdStore) -> Result<(), String> {
    let asked = async {
        loop {
            match store.config().await {
                Err(error) if error.reason.contains("Connection refused") => tokio::task::yield_now().await,
                answer => return answer.map(drop).map_err(|error| error.reason),
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.expect("an answer in time")
}

#[tokio::test]
async fn servers_are_trusted_by_their_authority_and_by_their_own_certificate() {
    let files = Files::new();
    for (server, trusted) in [
        ("leaf", "authority"),
        ("leaf", "leaf"),
        ("self-ca", "self-ca"),
        ("self-leaf", "self-leaf"),
        ("p521", "p521"),
    ] {
        let etcd = files.server(server, &[]);
        let heard = ask(&etcd.secured_url(), Some(files.path(trusted)), None).await;
        assert_eq!(heard, Ok(()), "{server} by {trusted}");
        // Also if the name is right, nobody else is.
        let other = if trusted == "self-ca" { "self-leaf" } else { "self-ca" };
        let told = ask(&etcd.secured_url(), Some(files.path(other)), None).await.unwrap_err();
        assert!(told.contains("--etcd-cafile"), "{server} by {other}: {told}");
        let elsewhere = etcd.secured_url().replace("127.0.0.1", "localhost");
        let told = ask(&elsewhere, Some(files.path(trusted)), None).await.unwrap_err();
        assert!(told.contains("for other addresses"), "{server} at another name: {told}");
    }
}

#[tokio::test]
async fn what_is_wrong_is_told_with_the_remedy_for_it() {
    let files = Files::new();
    let ca = format!("--trusted-ca-file={}", files.path("authority").display());
    let plain = Etcd::start().await;
    let secured = files.server("leaf", &[]);
    let strict = files.server("leaf", &["--client-cert-auth".to_owned(), ca]);
    let trusted = || Some(files.path("authority"));
    let own = |name: &str| Some(files.identity(name));
    let secured_plain = plain.url().replace("http://", "https://");
    let plain_secured = secured.secured_url().replace("https://", "http://");
    for (url, ca, identity, remedy) in [
        (
            secured.secured_url(),
            None,
            None,
            "do not vouch for the server's certificate: give its authority as --etcd-cafile",
        ),
        (strict.secured_url(), trusted(), None, "the server wants --etcd-certfile and --etcd-keyfile"),
        (strict.secured_url(), trusted(), own("self-leaf"), "the server refuses --etcd-certfile"),
        (secured_plain, trusted(), None, "http:// is meant"),
        (plain_secured, None, None, "https:// is meant"),
    ] {
        let told = ask(&url, ca, identity).await.unwrap_err();
        assert!(told.contains(remedy), "no {remedy} in: {told}");
    }
    assert_eq!(ask(&strict.secured_url(), trusted(), own("leaf")).await, Ok(()));
}

/// Connections that are closed or reset may be those of a server that speaks otherwise, or of one that ends.
#[tokio::test]
async fn a_server_that_has_answered_and_hangs_up_is_not_taken_for_one_that_speaks_otherwise() {
    let files = Files::new();
    for secured in [false, true] {
        let mut etcd = if secured { files.server("leaf", &[]) } else { Etcd::start().await };
        let url = if secured { etcd.secured_url() } else { etcd.url() };
        let open = async || {
            let access = Access { ca: secured.then(|| files.path("authority")), ..Access::default() };
            let (urls, prefix) = (vec![url.clone()], PREFIX.to_owned());
            EtcdStore::connect_as(urls, prefix, access, StoreMeter::default()).await.unwrap()
        };
        let (known, new) = (open().await, open().await);
        heard(&known).await.unwrap();
        etcd.kill();
        let hanging_up = hang_up_at(&url);
        let told = known.config().await.unwrap_err().reason;
        assert!(!told.contains("is meant"), "{told}");
        let told = new.config().await.unwrap_err().reason;
        assert!(told.contains("is meant"), "{told}");
        hanging_up.abort();
    }
}

/// Takes connections at `url` and closes them.
fn hang_up_at(url: &str) -> tokio::task::JoinHandle<()> {
    let listener = TcpListener::bind(url.split_once("://").unwrap().1).unwrap();
    listener.set_nonblocking(true).unwrap();
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} })
}
