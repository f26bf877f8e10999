//! Reproducible noise (xorshift64): both ends know what is to come, and a run can be repeated.

/// A source of noise.
#[derive(Debug)]
pub struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Noise {
    /// The noise that belongs to a seed.
    pub fn seeded(seed: u64) -> Self {
        // Zero would stay zero for ever; neighbouring seeds are to differ in more than a few bits.
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95) | 1)
    }

    /// The next eight octets, as a number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Fills a block with the octets to come.
    pub fn fill(&mut self, block: &mut [u8]) {
        for chunk in block.chunks_mut(8) {
            chunk.copy_from_slice(&self.number().to_le_bytes()[..chunk.len()]);
        }
    }

    /// So many octets.
    pub fn octets(&mut self, length: usize) -> Vec<u8> {
        let mut octets = vec![0; length];
        self.fill(&mut octets);
        octets
    }
}
