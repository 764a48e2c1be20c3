//! How to know that passt is at work: it answers a question for its own address, and it does so only when it has bound
//! all ports that it was told to.
//!
//! passt has no other word for "ready" that reaches us: its `--pid` file needs a path that the passt of every
//! distribution may write, and its standard error says nothing. An ARP request needs the socket that we have.
//!
//! # Source
//! RFC 826; the framing (a length of four bytes before each frame) is that of QEMU's stream sockets.

use crate::{GATEWAY, GUEST_ADDRESS};

const ARP: [u8; 2] = [0x08, 0x06];

/// Ethernet, IPv4, and the lengths of their addresses.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0, 6, 4];

const REQUEST: [u8; 2] = [0, 1];
const REPLY: [u8; 2] = [0, 2];

/// A question of the guest's for the hardware address of its gateway, with the length before it. `mac` is the guest's:
/// passt takes the sender of what it hears for it.
pub fn probe_frame(mac: [u8; 6]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend(ARP);
    frame.extend(ETHERNET_IPV4);
    frame.extend(REQUEST);
    frame.extend(mac);
    frame.extend(GUEST_ADDRESS.octets());
    frame.extend([0; 6]);
    frame.extend(GATEWAY.octets());
    let len = u32::try_from(frame.len()).expect("a frame is small");
    [&len.to_be_bytes()[..], &frame].concat()
}

/// Whether a frame, without its length, is the answer.
pub fn is_probe_answer(frame: &[u8]) -> bool {
    let arp = frame.get(12..14).filter(|kind| *kind == ARP).and_then(|_| frame.get(14..42));
    arp.is_some_and(|arp| arp[..6] == ETHERNET_IPV4 && arp[6..8] == REPLY && arp[14..18] == GATEWAY.octets())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_gateways_answer_is_one() {
        // As passt of 2023-03 gave it.
        let mut answer =
            b"\x02\x01\x02\x03\x04\x05\x02\xfc\x00\x00\x00\x01\x08\x06\x00\x01\x08\x00\x06\x04\x00\x02\
            \x02\xfc\x00\x00\x00\x01\n\x00\x02\x02\x02\x01\x02\x03\x04\x05\n\x00\x02\x0f"
                .to_vec();
        assert!(is_probe_answer(&answer));
        assert!(!is_probe_answer(&answer[..41]));
        answer[31] = 9;
        assert!(!is_probe_answer(&answer));
        let question = probe_frame([2, 1, 2, 3, 4, 5]);
        assert_eq!(question.len(), 4 + 42);
        assert_eq!(question[..4], [0, 0, 0, 42]);
        assert!(!is_probe_answer(&question[4..]));
        assert!(!is_probe_answer(&[]));
    }
}
