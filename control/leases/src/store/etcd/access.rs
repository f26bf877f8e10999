//! Whom we trust and who we are to etcd: certificates in files, and a user with a password.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use overlay_support::files;
use overlay_support::reserve::reading;
use overlay_support::unit;

/// What a connection to etcd is secured with. The default is nothing: `https` endpoints are then
/// checked against the system's own authorities, and no user is named.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    /// PEM file of the authorities that may vouch for the server; the system's if not given.
    pub ca: Option<PathBuf>,
    /// What the server knows this client by.
    pub identity: Option<IdentityFiles>,
    /// The user whose rights count.
    pub user: Option<User>,
}

/// A client certificate and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdentityFiles {
    /// PEM file of the certificate, with those between it and the authority, if any.
    pub certificate: PathBuf,
    /// PEM file of its private key, not encrypted.
    pub key: PathBuf,
}

/// A user of etcd's own authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The name.
    pub name: String,
    /// The password.
    pub password: Password,
}

/// A text that no log, error or debug output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// What the files held when they were read.
#[derive(PartialEq, Eq)]
pub(super) struct Material {
    pub(super) ca: Option<Vec<u8>>,
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl Access {
    /// Whether anything is asked for that only TLS can give.
    pub fn wants_tls(&self) -> bool {
        self.ca.is_some() || self.identity.is_some()
    }

    /// Reads the files anew; the error names file and flag.
    pub(super) fn read(&self) -> Result<Material, String> {
        let ca = self.ca.as_deref().map(|path| certificates("--etcd-cafile", path)).transpose()?;
        let identity = self.identity.as_ref().map(|files| {
            let certificate = certificates("--etcd-certfile", &files.certificate)?;
            Ok::<_, String>((certificate, private_key("--etcd-keyfile", &files.key)?))
        });
        Ok(Material { ca, identity: identity.transpose()? })
    }
}

fn certificates(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    let text = read(flag, path)?;
    let mut found = CertificateDer::pem_slice_iter(&text).peekable();
    let all_good = found.peek().is_some() && found.all(|certificate| certificate.is_ok());
    all_good.then_some(text).ok_or_else(|| format!("{flag} {}: not a PEM certificate", path.display()))
}

fn private_key(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    let text = read(flag, path)?;
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(_) => Ok(text),
        Err(_) => Err(format!("{flag} {}: not a PEM private key without passphrase", path.display())),
    }
}

fn read(flag: &str, path: &Path) -> Result<Vec<u8>, String> {
    let remedy = |error: &io::Error| match (unit::hint(path, error), error.kind()) {
        (hint, io::ErrorKind::PermissionDenied) if hint.is_empty() => {
            ": let the user that overlayd runs as read it, or leave it CAP_DAC_READ_SEARCH, as its unit does"
                .to_owned()
        }
        (hint, _) => hint,
    };
    reading(|| files::read(path, files::LONGEST_TEXT))
        .map_err(|error| format!("{flag} {}: {error}{}", path.display(), remedy(&error)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_no_certificate_or_key_is_named_with_its_flag() {
        let dir = tempfile::tempdir().unwrap();
        let garbage = dir.path().join("garbage.pem");
        fs::write(&garbage, "garbage").unwrap();
        let missing = dir.path().join("missing.pem");
        for (path, what) in [(&garbage, "not a PEM certificate"), (&missing, "No such file")] {
            let access = Access { ca: Some(path.clone()), ..Access::default() };
            let error = access.read().err().unwrap();
            assert!(error.contains("--etcd-cafile") && error.contains(what), "{error}");
            assert!(error.contains(path.to_str().unwrap()), "{error}");
        }
        assert!(private_key("--etcd-keyfile", &garbage).unwrap_err().contains("not a PEM private key"));
        assert!(Access::default().read().is_ok());
    }

    #[test]
    fn a_password_is_not_shown() {
        let user = User { name: "flannel".to_owned(), password: Password("secret".to_owned()) };
        let text = format!("{:?}", Access { user: Some(user), ..Access::default() });
        assert!(text.contains("flannel") && !text.contains("secret"), "{text}");
    }
}
