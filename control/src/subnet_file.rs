//! `subnet.env`: what docker, CNI plugins and the next start of the daemon learn of our lease.
//! The format is flannel's (`WriteSubnetFile` in `pkg/subnet`), line by line.

use std::io;
use std::path::Path;

use ipnet::Ipv4Net;

use crate::files;

/// What the file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubnetFile {
    /// The whole overlay network.
    pub network: Ipv4Net,
    /// Our subnet, host bits zero. The file carries its first host address.
    pub subnet: Ipv4Net,
    /// The overlay device's MTU in bytes.
    pub mtu: u32,
    /// Whether we masquerade what leaves the overlay, so that docker need not.
    pub ip_masq: bool,
}

/// What an earlier life left in the file; each `None` if missing or unreadable.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Previous {
    /// `FLANNEL_NETWORK`, host bits zero.
    pub network: Option<Ipv4Net>,
    /// `FLANNEL_SUBNET`, host bits zero.
    pub subnet: Option<Ipv4Net>,
}

impl SubnetFile {
    /// Writes the file (0644) in one step; makes its directory (0755) if it is missing.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        files::replace(path, self.text().as_bytes(), 0o644)
    }

    /// Whether `path` says this already.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        files::read(path, files::LONGEST_TEXT).is_ok_and(|text| text == self.text().as_bytes())
    }

    fn text(&self) -> String {
        let first = std::net::Ipv4Addr::from(self.subnet.network().to_bits() + 1);
        format!(
            "FLANNEL_NETWORK={}\nFLANNEL_SUBNET={}/{}\nFLANNEL_MTU={}\nFLANNEL_IPMASQ={}\n",
            self.network,
            first,
            self.subnet.prefix_len(),
            self.mtu,
            self.ip_masq
        )
    }
}

impl Previous {
    /// Reads the file. A missing one, and lines that say nothing of use, are no error.
    pub fn read(path: &Path) -> io::Result<Self> {
        match files::read(path, files::LONGEST_TEXT) {
            Ok(content) => Ok(Self::parse(&String::from_utf8_lossy(&content))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error),
        }
    }

    /// Reads its text; lines that say nothing of use are passed over.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut previous = Self::default();
        for (key, value) in text.lines().filter_map(|line| line.split_once('=')) {
            let net = value.trim().trim_matches(['"', '\'']).parse::<Ipv4Net>().ok();
            match key.trim() {
                "FLANNEL_NETWORK" => previous.network = net.map(|net| net.trunc()),
                "FLANNEL_SUBNET" => previous.subnet = net.map(|net| net.trunc()),
                _ => {}
            }
        }
        previous
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn net(text: &str) -> Option<Ipv4Net> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn the_file_is_flannels_and_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flannel/subnet.env");
        let file = SubnetFile {
            network: "10.1.0.0/16".parse().unwrap(),
            subnet: "10.1.86.0/24".parse().unwrap(),
            mtu: 1450,
            ip_masq: false,
        };
        file.write(&path).unwrap();

        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.86.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
        let previous = Previous { network: net("10.1.0.0/16"), subnet: net("10.1.86.0/24") };
        assert_eq!(Previous::read(&path).unwrap(), previous);
    }

    #[test]
    fn a_missing_file_and_odd_lines_are_no_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Previous::read(&dir.path().join("none")).unwrap(), Previous::default());
        assert!(Previous::read(dir.path()).is_err());

        let text =
            "# comment\r\n\r\nFLANNEL_NETWORK='10.1.0.0/16'\r\n=\nFLANNEL_SUBNET = \"10.1.86.1/24\" \r\nx";
        let previous = Previous { network: net("10.1.0.0/16"), subnet: net("10.1.86.0/24") };
        assert_eq!(Previous::parse(text), previous);
        assert_eq!(Previous::parse("FLANNEL_SUBNET=10.1.86.1\nFLANNEL_NETWORK="), Previous::default());
    }
}
