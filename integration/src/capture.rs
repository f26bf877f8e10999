//! What is on a wire: tcpdump, and what it makes of the frames.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::netns::{Namespace, succeed};
use crate::process::{Process, SOON, await_until};

/// A running capture. Frames are seen whole, with their Ethernet headers.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

impl Capture {
    /// Captures what matches `filter` on a device, from now on. `directory` takes the file.
    #[track_caller]
    pub fn start(ns: &Namespace, device: &str, filter: &str, directory: &Path) -> Self {
        Self::with(ns, device, filter, directory, "inout", WHOLE)
    }

    /// The same, but only the first [`HEADERS`] octets of each frame: then a busy machine misses none.
    #[track_caller]
    pub fn start_with_headers(ns: &Namespace, device: &str, filter: &str, directory: &Path) -> Self {
        Self::with(ns, device, filter, directory, "inout", HEADERS)
    }

    /// Captures only what comes in by the device; of a TUN, what has been written to it. (A filter's own word for
    /// it, `inbound`, lets nothing through here.)
    #[track_caller]
    pub fn inbound(ns: &Namespace, device: &str, filter: &str, directory: &Path) -> Self {
        Self::with(ns, device, filter, directory, "in", WHOLE)
    }

    #[track_caller]
    fn with(
        ns: &Namespace,
        device: &str,
        filter: &str,
        directory: &Path,
        direction: &str,
        octets: usize,
    ) -> Self {
        // Several may run at a time, and each waits for its own log to say that it listens.
        let name = format!("tcpdump-{}-{device}", NEXT.fetch_add(1, Ordering::Relaxed));
        let file = directory.join(format!("{name}.pcap"));
        let mut command = ns.command("tcpdump");
        command.args(["-n", "-U", "--immediate-mode", "-Z", "root", "-i", device]);
        command.args(["-Q", direction, "-s", &octets.to_string(), "-B", BUFFER, "-w"]);
        let tcpdump = Process::spawn(
            &name,
            {
                command.arg(&file).arg(filter);
                command
            },
            directory,
        );
        await_until(SOON, "tcpdump to listen", || tcpdump.log().contains("listening on"));
        Self { tcpdump, file }
    }

    /// Waits for at least `count` frames and returns all that have been seen.
    #[track_caller]
    pub fn frames(&self, count: usize) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        await_until(SOON, &format!("{count} captured frames"), || {
            frames = read(&self.file);
            frames.len() >= count
        });
        frames
    }

    /// Ends the capture and returns all frames that have passed.
    #[track_caller]
    pub fn stop(mut self) -> Vec<Vec<u8>> {
        // What it has not come to would be lost: on a busy machine it may still have to look at the last frames.
        // (With `--immediate-mode` each frame wakes it, so that it sleeps only when there is none left.)
        await_until(SOON, "tcpdump to have seen all", || self.tcpdump.sleeps());
        self.tcpdump.terminate(SOON);
        read(&self.file)
    }
}

/// What the first octets of a frame are, in tcpdump's file format.
#[derive(Debug, Clone, Copy)]
pub enum LinkType {
    /// An Ethernet header.
    Ethernet = 1,
    /// An IP header.
    Raw = 101,
}

/// Has tcpdump print frames, verbosely. UDP to port 8472 is taken for VXLAN.
#[track_caller]
pub fn decode(link_type: LinkType, frames: &[&[u8]], directory: &Path) -> String {
    let mut text = Vec::from(MAGIC.to_le_bytes());
    text.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    text.extend(u32::from(u16::MAX).to_le_bytes());
    text.extend((link_type as u32).to_le_bytes());
    for frame in frames {
        let length = u32::try_from(frame.len()).expect("a frame").to_le_bytes();
        text.extend([0; 8]);
        text.extend(length);
        text.extend(length);
        text.extend_from_slice(frame);
    }
    let file = directory.join("decode.pcap");
    fs::write(&file, text).expect("write a capture file");
    let mut command = Command::new("tcpdump");
    command.args(["-n", "-v", "-e", "-r"]).arg(&file);
    if matches!(link_type, LinkType::Ethernet) {
        command.args(["-T", "vxlan"]);
    }
    succeed(&mut command)
}

/// The frames of a capture file, up to the first that is not complete yet.
fn read(file: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(file).unwrap_or_default();
    let mut rest = bytes.get(FILE_HEADER..).unwrap_or_default();
    let mut frames = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(RECORD_HEADER) {
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]) as usize;
        let Some((frame, after)) = after.split_at_checked(length) else { break };
        frames.push(frame.to_vec());
        rest = after;
    }
    frames
}

/// The largest super-packet with its headers. Every frame takes that much of the buffer, however short
/// it is, and with tcpdump's defaults there is room for eight.
const WHOLE: usize = 66_000;
/// All headers of a packet in a tunnel, however long TCP's options are.
pub const HEADERS: usize = 256;
static NEXT: AtomicU32 = AtomicU32::new(1);
/// In KiB.
const BUFFER: &str = "32768";
/// pcap(5): the file header is 24 octets, a record's is 16 with the captured length at 8.
const FILE_HEADER: usize = 24;
const RECORD_HEADER: usize = 16;
const MAGIC: u32 = 0xa1b2_c3d4;
