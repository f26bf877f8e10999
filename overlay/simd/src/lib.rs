//! Code compiled a second time for what this processor has beyond its family's baseline.

#![allow(unsafe_code)]

/// Sums `data` as 16-bit words in the machine's byte order, not folded; an odd last byte is a
/// word whose other byte is zero.
#[inline]
#[must_use]
pub fn sum_words(data: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, as was just asked (the answer is cached by std).
        return unsafe { sum_words_avx2(data) };
    }
    sum_words_portable(data)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_words_avx2(data: &[u8]) -> u64 {
    sum_words_portable(data)
}

/// Eight lanes of 32-bit words added into 64 bits each: what the compiler turns into vector
/// instructions, SSE2 or NEON at least. 2³² words fit a lane, and no packet has as many.
#[inline(always)]
fn sum_words_portable(data: &[u8]) -> u64 {
    let mut lanes = [0u64; 8];
    let (blocks, rest) = data.as_chunks::<32>();
    for block in blocks {
        let (words, _) = block.as_chunks::<4>();
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    // A 32-bit word counts as two 16-bit ones once folded, since 2¹⁶ ≡ 1 (mod 2¹⁶ − 1). Folding
    // each lane to 48 bits before the last additions keeps them from overflowing.
    let blocks: u64 = lanes.iter().map(|lane| (lane & 0xffff_ffff) + (lane >> 32)).sum();
    let (words, last) = rest.as_chunks::<2>();
    let rest: u64 = words.iter().map(|word| u64::from(u16::from_ne_bytes(*word))).sum();
    blocks + rest + last.first().map_or(0, |last| u64::from(u16::from_ne_bytes([*last, 0])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_agree_with_word_by_word() {
        let data: Vec<u8> = (0..2000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        for len in 0..data.len() {
            for start in [0, 1, 7] {
                let Some(data) = data.get(start..len) else { continue };
                let expected: u64 = data
                    .chunks(2)
                    .map(|word| u64::from(u16::from_ne_bytes([word[0], *word.get(1).unwrap_or(&0)])))
                    .sum();
                for sum in [sum_words(data), sum_words_portable(data)] {
                    assert_eq!(sum % 0xffff, expected % 0xffff, "{start}..{len}");
                }
            }
        }
    }
}
