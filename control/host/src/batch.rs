//! Many requests to the kernel at once: a hundred thousand routes, each asked for and waited for by itself, take minutes
//! on a small machine.

use std::os::fd::OwnedFd;

use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rustix::io;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use tokio::task::spawn_blocking;

use super::HostError;

/// What the kernel is asked to do.
pub(super) struct Request {
    /// To what.
    pub(super) message: RouteNetlinkMessage,
    /// How, in flags of netlink's.
    pub(super) flags: u16,
}

/// What the kernel said to a request.
pub(super) type Answer = Result<(), rtnetlink::Error>;

/// Asks all of it, in this order, in the network namespace of the calling thread; the answers are in the same order.
///
/// # Errors
/// [`HostError::Netlink`] if the kernel does not answer: nobody knows then how much of it has been done.
pub(super) async fn ask(requests: Vec<Request>) -> Result<Vec<Answer>, HostError> {
    if requests.is_empty() {
        return Ok(Vec::new());
    }
    let flags = SocketFlags::CLOEXEC;
    // Without a protocol it is NETLINK_ROUTE's, whose number is 0.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None);
    let socket = socket.map_err(|error| failed("open a socket", error))?;
    // The kernel does its work within the call.
    spawn_blocking(move || ask_by(&socket, requests)).await.unwrap_or_else(|error| {
        Err(HostError::Netlink { action: ACTION.to_owned(), reason: error.to_string() })
    })
}

fn ask_by(socket: &OwnedFd, requests: Vec<Request>) -> Result<Vec<Answer>, HostError> {
    let mut answers = Vec::with_capacity(requests.len());
    let mut requests = requests.into_iter();
    loop {
        let batch: Vec<Request> = requests.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            return Ok(answers);
        }
        let (from, count) = (answers.len(), batch.len());
        let mut bytes = Vec::new();
        for (number, request) in batch.into_iter().enumerate() {
            write(&mut bytes, request, sequence(from + number));
        }
        send(socket, &bytes, SendFlags::empty()).map_err(|error| failed(ACTION, error))?;
        while answers.len() < from + count {
            take_answers(socket, &mut answers)?;
        }
    }
}

/// Appends a request to a batch.
fn write(bytes: &mut Vec<u8>, request: Request, sequence: u32) {
    let mut message = NetlinkMessage::from(request.message);
    message.header.flags = NLM_F_REQUEST | NLM_F_ACK | request.flags;
    message.header.sequence_number = sequence;
    message.finalize();
    let begin = bytes.len();
    bytes.resize(begin + message.buffer_len().next_multiple_of(ALIGNMENT), 0);
    message.serialize(&mut bytes[begin..]);
}

/// Takes the answers of the next datagram, which are those to the next requests.
fn take_answers(socket: &OwnedFd, answers: &mut Vec<Answer>) -> Result<(), HostError> {
    let mut buffer = [0; 8192];
    // They are there when the kernel has done its work.
    let (length, _) =
        recv(socket, &mut buffer, RecvFlags::DONTWAIT).map_err(|error| failed(ACTION, error))?;
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest);
        let message = message.map_err(|error| unclear(&error))?;
        let length = message.header.length as usize;
        if message.header.sequence_number != sequence(answers.len()) {
            return Err(unclear(&"an answer to something else"));
        }
        answers.push(match message.payload {
            NetlinkPayload::Error(error) if error.code.is_some() => {
                Err(rtnetlink::Error::NetlinkError(error))
            }
            NetlinkPayload::Error(_) => Ok(()),
            other => return Err(unclear(&format_args!("{other:?}"))),
        });
        rest = rest.get(length.next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    Ok(())
}

/// That of the request of this number.
fn sequence(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn failed(action: &str, error: io::Errno) -> HostError {
    HostError::Netlink { action: action.to_owned(), reason: error.to_string() }
}

fn unclear(what: &dyn std::fmt::Display) -> HostError {
    HostError::Netlink {
        action: ACTION.to_owned(),
        reason: format!("the kernel says what is not understood: {what}"),
    }
}

const ACTION: &str = "change routes";
/// With each send. The answers to so many fit a socket's receive buffer, which has some 200 KiB.
const BATCH: usize = 100;
/// Where a message may begin (`NLMSG_ALIGNTO`).
const ALIGNMENT: usize = 4;
