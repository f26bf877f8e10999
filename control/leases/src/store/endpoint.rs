//! An endpoint of etcd's as it may be written: `host:port`, with or without a scheme, a user before it and a path
//! behind it.

/// The parts of an endpoint, as they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint<'a> {
    /// What stands before `://`.
    pub scheme: Option<&'a str>,
    /// What stands before the `@`.
    pub user: Option<&'a str>,
    /// Host and port.
    pub authority: &'a str,
    /// What stands behind them, without slashes at the end.
    pub path: &'a str,
}

impl<'a> Endpoint<'a> {
    pub fn of(text: &'a str) -> Self {
        let text = text.trim();
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, text),
        };
        let (user, rest) = match rest.rsplit_once('@') {
            Some((user, rest)) => (Some(user), rest),
            None => (None, rest),
        };
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        Self { scheme, user, authority, path: path.trim_end_matches('/') }
    }

    /// An address, without the brackets of IPv6, or a name.
    pub fn host(&self) -> &'a str {
        match self.authority.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => self.authority.split(':').next().unwrap_or_default(),
        }
    }

    /// Whether it names a port. (An IPv6 address has colons, too, in brackets.)
    pub fn has_port(&self) -> bool {
        self.authority.rsplit(']').next().is_some_and(|after| after.contains(':'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_taken_apart_however_it_is_written() {
        for (text, scheme, user, authority, path, host, has_port) in [
            ("http://10.200.3.5:2379", Some("http"), None, "10.200.3.5:2379", "", "10.200.3.5", true),
            ("https://etcd.example/", Some("https"), None, "etcd.example", "", "etcd.example", false),
            (" 10.200.3.5:2379 ", None, None, "10.200.3.5:2379", "", "10.200.3.5", true),
            ("HTTP://A", Some("HTTP"), None, "A", "", "A", false),
            ("http://[fd00::5]:2379//", Some("http"), None, "[fd00::5]:2379", "", "fd00::5", true),
            ("[fd00::5]", None, None, "[fd00::5]", "", "fd00::5", false),
            ("http://Me:Se/cret@a:1/v3?x", Some("http"), Some("Me:Se/cret"), "a:1", "/v3?x", "a", true),
            ("http://", Some("http"), None, "", "", "", false),
        ] {
            let endpoint = Endpoint::of(text);
            assert_eq!(endpoint, Endpoint { scheme, user, authority, path }, "{text}");
            assert_eq!((endpoint.host(), endpoint.has_port()), (host, has_port), "{text}");
        }
    }
}
