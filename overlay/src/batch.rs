//! The packets that a worker reads from the overlay device and sends with one system call.

use std::net::SocketAddrV4;

use crate::sys::mmsg::Message;
use crate::wire::{vnet, vxlan};

/// Free bytes in front of every packet: room for its encapsulation.
const HEADROOM: usize = 32;
/// The largest IP packet, with the virtio header in front.
const READ_LEN: usize = vnet::LEN + 65_535;
/// A slot begins on a cache line.
const SLOT_LEN: usize = (HEADROOM + READ_LEN).next_multiple_of(64);

const _: () = assert!(vnet::LEN <= HEADROOM && vxlan::HEADER_LEN <= HEADROOM);

/// Slots of the largest packet's size, filled one after the other. Memory is touched only as far
/// as packets are long.
#[derive(Debug)]
pub struct Batch {
    bytes: Vec<u8>,
    capacity: usize,
    messages: Vec<Message>,
}

impl Batch {
    /// An empty batch with room for `capacity` packets.
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { bytes: vec![0; capacity * SLOT_LEN], capacity, messages: Vec::with_capacity(capacity) }
    }

    /// Whether every slot is taken.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.messages.len() == self.capacity
    }

    /// The buffer of the next free slot, into which virtio header and packet are read.
    ///
    /// # Panics
    /// If the batch is full.
    pub fn next_read(&mut self) -> &mut [u8] {
        let start = self.next_packet() - vnet::LEN;
        &mut self.bytes[start..start + READ_LEN]
    }

    /// Takes the slot last read into: its packet of `len` bytes goes to `to` behind `header`.
    /// (The header overwrites the virtio header, which has been looked at by then.)
    ///
    /// # Panics
    /// If the header is longer than any encapsulation, or the batch full.
    pub fn push(&mut self, to: SocketAddrV4, header: &[u8], len: usize) {
        let start = self.next_packet() - header.len();
        self.bytes[start..start + header.len()].copy_from_slice(header);
        self.messages.push(Message { to, start, len: header.len() + len, header_len: header.len() });
    }

    /// The messages, whose places lie in [`bytes`](Self::bytes).
    #[must_use]
    pub fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// The buffer that the messages lie in.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Frees every slot.
    pub fn clear(&mut self) {
        self.messages.clear();
    }

    fn next_packet(&self) -> usize {
        assert!(!self.is_full(), "the batch has no free slot");
        self.messages.len() * SLOT_LEN + HEADROOM
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_lies_behind_its_header() {
        let to = "192.168.199.238:8472".parse().unwrap();
        let mut batch = Batch::new(2);
        for packet in [b"first", b"again"] {
            let room = batch.next_read();
            room[vnet::LEN..vnet::LEN + 5].copy_from_slice(packet);
            batch.push(to, b"<head>", 5);
        }
        assert!(batch.is_full());
        let datagram = |i: usize| {
            let Message { start, len, .. } = batch.messages()[i];
            &batch.bytes()[start..start + len]
        };
        assert_eq!(datagram(0), b"<head>first");
        assert_eq!(datagram(1), b"<head>again");
        assert_eq!(batch.messages()[1].inner_len(), 5);
        batch.clear();
        assert!(batch.messages().is_empty());
    }
}
