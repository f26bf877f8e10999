//! Certificates for TLS between etcd and its clients.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// An authority that signs certificates.
pub struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new authority with a key of its own.
    #[track_caller]
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// Writes its own certificate.
    #[track_caller]
    pub fn write(&self, path: &Path) {
        fs::write(path, &self.pem).expect("write a certificate");
    }

    /// Writes a new certificate for these addresses to `<name>.pem` in a directory, and its key to
    /// `<name>-key.pem`.
    #[track_caller]
    pub fn sign(&self, directory: &Path, name: &str, addresses: &[IpAddr]) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
        let mut params = CertificateParams::new(names).expect("addresses");
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        fs::write(directory.join(format!("{name}.pem")), certificate.pem()).expect("write a certificate");
        fs::write(directory.join(format!("{name}-key.pem")), key.serialize_pem()).expect("write a key");
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
