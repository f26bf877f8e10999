//! `subnet.env`: what docker, CNI plugins and the next start of the daemon learn of our lease.
//! The format is flannel's (`WriteSubnetFile` in `pkg/subnet`), line by line.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use ipnet::Ipv4Net;

use overlay_support::files;
use overlay_support::reserve::reading;

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
    /// Writes the file in one step; makes its directory (0755) if it is missing. Lines that are not flannel's stay:
    /// docker's options, for instance, as `mk-docker-opts.sh -d` puts them there.
    ///
    /// Anyone may read the file, unless its other lines were not for anyone.
    ///
    /// # Errors
    /// It cannot be written; or there is a file whose other lines cannot be read: it stays as it is.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let present = match read(path) {
            Ok(present) => present,
            Err(error) if is_file(path) => {
                let text = format!("the lines in it that are not flannel's cannot be kept: {error}");
                return Err(io::Error::new(error.kind(), text));
            }
            // What is no file has no lines.
            Err(_) => Vec::new(),
        };
        let others = lines(&present, |line| !is_flannels(line));
        let mode = fs::metadata(path).map_or(OPEN, |metadata| metadata.mode() & 0o777);
        let mode = if others.is_empty() || mode & ANYONE != 0 { OPEN } else { mode };
        files::replace(path, &[self.text().as_bytes(), &others].concat(), mode)
    }

    /// Whether `path` says this already.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        let text = read(path);
        text.is_ok_and(|text| lines(&text, is_flannels) == self.text().as_bytes())
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
        match read(path) {
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

/// Its content. Others write it, too, and may have kept it to themselves.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    reading(|| files::read(path, files::LONGEST_TEXT))
}

fn is_file(path: &Path) -> bool {
    reading(|| fs::metadata(path)).is_ok_and(|metadata| metadata.is_file())
}

/// Those lines of `text` that `wanted` picks, each with its end.
fn lines(text: &[u8], wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let all = text.strip_suffix(b"\n").unwrap_or(text).split(|byte| *byte == b'\n');
    let picked = all.filter(|line| wanted(line) && !text.is_empty());
    picked.flat_map(|line| line.iter().copied().chain([b'\n'])).collect()
}

/// Whether a line is one that flannel writes, and so ours to write.
fn is_flannels(line: &[u8]) -> bool {
    const KEYS: [&[u8]; 6] = [
        b"FLANNEL_NETWORK",
        b"FLANNEL_SUBNET",
        b"FLANNEL_IPV6_NETWORK",
        b"FLANNEL_IPV6_SUBNET",
        b"FLANNEL_MTU",
        b"FLANNEL_IPMASQ",
    ];
    let line = line.trim_ascii();
    let line = line.strip_prefix(b"export ").map_or(line, <[u8]>::trim_ascii_start);
    let key = line.split(|byte| *byte == b'=').next().unwrap_or_default().trim_ascii_end();
    line.contains(&b'=') && KEYS.contains(&key)
}

const OPEN: u32 = 0o644;
const ANYONE: u32 = 0o004;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    use super::*;

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

    fn file(subnet: &str, mtu: u32) -> SubnetFile {
        let network = "10.1.0.0/16".parse().unwrap();
        SubnetFile { network, subnet: subnet.parse().unwrap(), mtu, ip_masq: true }
    }

    #[test]
    fn others_lines_stay_whatever_becomes_of_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        let others =
            "# docker's\nDOCKER_NETWORK_OPTIONS=\" --bip=10.1.86.1/24 --mtu=1450\"\n\nFLANNEL_MTUX=9\n\u{e4}";
        let earlier = "export FLANNEL_MTU=9\n FLANNEL_SUBNET = 10.1.7.1/24\nFLANNEL_IPV6_SUBNET=fd00::1/64\n";
        for earlier in ["", earlier, "FLANNEL_NETWORK=\n"] {
            fs::write(&path, format!("{earlier}{others}")).unwrap();
            for (subnet, mtu) in [("10.1.86.0/24", 1450), ("10.1.86.0/24", 1350), ("10.1.9.0/24", 1350)] {
                let file = file(subnet, mtu);
                assert!(!file.is_at(&path));
                file.write(&path).unwrap();
                assert!(file.is_at(&path));
                assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}{others}\n", file.text()));
            }
        }
        fs::write(&path, "").unwrap();
        file("10.1.9.0/24", 1350).write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), file("10.1.9.0/24", 1350).text());
    }

    #[test]
    fn a_file_whose_other_lines_cannot_be_read_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("subnet.env");
        let before = "SITES=1\n".repeat(files::LONGEST_TEXT / 8 + 1);
        fs::write(&path, &before).unwrap();
        let error = file("10.1.9.0/24", 1450).write(&path).unwrap_err().to_string();
        assert!(error.contains("cannot be kept: it is longer than"), "{error}");
        assert!(fs::read_to_string(&path).unwrap() == before);
    }

    #[test]
    fn what_is_no_file_of_that_name_is_replaced_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let [path, elsewhere] = ["subnet.env", "elsewhere"].map(|name| dir.path().join(name));
        let written = file("10.1.9.0/24", 1450);
        let replaced = |others: &str, mode: u32| {
            assert_eq!(Previous::read(&path).unwrap_or_default(), Previous::default());
            written.write(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), written.text() + others);
            let metadata = fs::symlink_metadata(&path).unwrap();
            assert!(metadata.is_file() && metadata.permissions().mode() & 0o777 == mode);
            fs::remove_file(&path).unwrap();
        };
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        replaced("", 0o644);
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        replaced("", 0o644);
        symlink("/dev/zero", &path).unwrap();
        replaced("", 0o644);
        symlink(&elsewhere, &path).unwrap();
        replaced("", 0o644);
        // What was not for anyone to read is not made so.
        for mode in [0o644, 0o600] {
            fs::write(&elsewhere, "SITES=1\n").unwrap();
            fs::set_permissions(&elsewhere, fs::Permissions::from_mode(mode)).unwrap();
            symlink(&elsewhere, &path).unwrap();
            replaced("SITES=1\n", mode);
            assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "SITES=1\n");
        }
        fs::create_dir(&path).unwrap();
        assert!(written.write(&path).is_err() && Previous::read(&path).is_err());
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
