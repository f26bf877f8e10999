//! The Internet checksum (RFC 1071).

use overlay_simd::sum_words;

/// The one's complement sum of `data` as big-endian 16-bit words, folded to 16 bits, not inverted.
/// An odd last byte counts as the high half of a word.
#[inline]
#[must_use]
pub fn sum(data: &[u8]) -> u16 {
    // Summing words in another byte order swaps the sum's bytes, and nothing else (RFC 1071, 2 B).
    u16::from_be(fold(sum_words(data)))
}

/// The sum, not inverted, of the pseudo-header that TCP and UDP put in front of a segment of
/// `len` bytes (RFC 9293, section 3.1; RFC 8200, section 8.1), from source and destination as they
/// stand in the IP header. An unfilled checksum field holds just this.
#[inline]
#[must_use]
pub fn pseudo_header<const N: usize>(addresses: &[u8; N], protocol: u8, len: usize) -> u16 {
    // A word of 32 bits counts as two of 16.
    let words = addresses.as_chunks::<4>().0.iter();
    let addresses: u64 = words.map(|word| u64::from(u32::from_be_bytes(*word))).sum();
    fold(addresses + u64::from(protocol) + len as u64)
}

/// The sum of two sums.
#[inline]
#[must_use]
pub fn add(a: u16, b: u16) -> u16 {
    fold(u64::from(a) + u64::from(b))
}

/// The checksum after one 16-bit word under it has changed (RFC 1624, equation 3).
#[inline]
#[must_use]
pub fn update(checksum: u16, old_word: u16, new_word: u16) -> u16 {
    !fold(u64::from(!checksum) + u64::from(!old_word) + u64::from(new_word))
}

#[inline]
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
        assert_eq!(sum(&[0xab]), 0xab00);
        assert_eq!(sum(&[]), 0);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        assert_eq!(update(0xdd2f, 0x5555, 0x3285), 0x0000);
    }

    #[test]
    fn an_update_equals_a_new_sum() {
        let mut header =
            [0x45, 0, 0, 0x73, 0, 0, 0x40, 0, 0x40, 0x11, 0, 0, 192, 168, 0, 1, 192, 168, 0, 199];
        let before = !sum(&header);
        header[8] = 0x3f;
        assert_eq!(update(before, 0x4011, 0x3f11), !sum(&header));
    }

    #[test]
    fn sums_of_parts_add_up() {
        let data: Vec<u8> = (0..200).collect();
        for cut in (0..200).step_by(2) {
            assert_eq!(add(sum(&data[..cut]), sum(&data[cut..])), sum(&data));
        }
    }
}
