//! `--etcd-endpoints`, in all the forms that etcd's own clients take.

use overlay_leases::store::Endpoint as Parts;

/// The value of `--etcd-endpoints`: at least one URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints(pub Vec<String>);

impl Endpoints {
    /// Gives those without a scheme the one that etcd's own client would use: https if there is something `secured`
    /// to speak it with, else http.
    pub(super) fn settle(&mut self, secured: bool) {
        let scheme = if secured { "https" } else { "http" };
        for endpoint in self.0.iter_mut().filter(|endpoint| !endpoint.contains("://")) {
            *endpoint = format!("{scheme}://{endpoint}");
        }
    }
}

/// Reads a list of endpoints. Empty members count as not given.
pub(super) fn endpoints(text: &str) -> Result<Endpoints, String> {
    let members = text.split(',').map(str::trim).filter(|member| !member.is_empty());
    let endpoints: Vec<String> = members.map(endpoint).collect::<Result<_, _>>()?;
    if endpoints.is_empty() {
        return Err("it names no endpoint".to_owned());
    }
    Ok(Endpoints(endpoints))
}

/// One endpoint: the scheme and host in small letters, no slash at the end.
fn endpoint(text: &str) -> Result<String, String> {
    let refused = || format!("'{text}' is not of the form HOST:PORT, http://HOST:PORT or https://HOST:PORT");
    let Parts { scheme, user, authority, path } = Parts::of(text);
    let scheme = scheme.map_or(String::new(), |scheme| format!("{}://", scheme.to_ascii_lowercase()));
    if !["", "http://", "https://"].contains(&scheme.as_str()) {
        return Err(refused());
    }
    let user = user.map_or(String::new(), |user| format!("{user}@"));
    let is_host =
        |text: &str| text.chars().all(|char| char.is_ascii_alphanumeric() || "-._:[]%".contains(char));
    let without_scheme = scheme.is_empty() && !(is_host(authority) && path.is_empty());
    if authority.is_empty() || authority.starts_with([':', '-']) || without_scheme {
        return Err(refused());
    }
    Ok(format!("{scheme}{user}{}{path}", authority.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_taken_as_etcds_clients_take_them() {
        for (text, expected) in [
            ("192.168.1.1:2379", &["http://192.168.1.1:2379"][..]),
            ("http://192.168.1.1:2379,", &["http://192.168.1.1:2379"]),
            (" ,http://a:1 ,, HTTP://B:2/ ,", &["http://a:1", "http://b:2"]),
            ("localhost:2379", &["http://localhost:2379"]),
            ("HTTPS://Etcd.Example.COM", &["https://etcd.example.com"]),
            ("[::1]:2379", &["http://[::1]:2379"]),
            ("http://Me:Secret@A:1/", &["http://Me:Secret@a:1"]),
        ] {
            let mut endpoints = endpoints(text).unwrap();
            endpoints.settle(false);
            assert_eq!(endpoints.0, expected, "{text}");
        }
    }

    #[test]
    fn with_certificates_an_endpoint_without_a_scheme_is_secured() {
        let mut endpoints = endpoints("a:1,http://b:1").unwrap();
        endpoints.settle(true);
        assert_eq!(endpoints.0, ["https://a:1", "http://b:1"]);
    }

    #[test]
    fn what_names_no_host_is_refused() {
        for text in
            ["", ",", "ftp://a:1", "http://", "http://:2379", "-etcd-endpoints=a:1", "-x", "a b", "unix:///x"]
        {
            assert!(endpoints(text).is_err(), "{text}");
        }
    }
}
