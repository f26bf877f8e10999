//! The mark of a packet, as far as it is known.

use super::packet::Holds;

/// A mark of which some bits may be open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    bits: u32,
    /// The bits that a rule may have given another value.
    open: u32,
    /// How much is known of that rule, if any are open.
    doubt: Holds,
}

impl Mark {
    /// That of a packet which no rule has marked.
    pub(super) const NONE: Self = Self::is(0);
    /// Any.
    pub(super) const UNKNOWN: Self = Self::NONE.opened(u32::MAX);

    pub(super) const fn is(bits: u32) -> Self {
        Self { bits, open: 0, doubt: Holds::Always }
    }

    /// The same, but for the bits of `mask`, which nobody here knows.
    pub(super) const fn opened(self, mask: u32) -> Self {
        match mask {
            0 => self,
            _ => Self { bits: self.bits & !mask, open: self.open | mask, doubt: Holds::Unknown },
        }
    }

    pub(super) fn is_known(self) -> bool {
        self.open == 0
    }

    /// Its value, if that is certain.
    pub(super) fn value(self) -> Option<u32> {
        self.is_known().then_some(self.bits)
    }

    /// Whether its bits of `mask` are `value`.
    pub(super) fn has(self, value: u32, mask: u32) -> Holds {
        if (self.bits ^ value) & mask & !self.open != 0 || value & !mask != 0 {
            Holds::Never
        } else if self.open & mask == 0 {
            Holds::Always
        } else {
            self.doubt
        }
    }

    /// Whether it is between two values.
    pub(super) fn is_between(self, first: u32, last: u32) -> Holds {
        match self.value() {
            Some(mark) => Holds::of((first..=last).contains(&mark)),
            None if first == last => self.has(first, u32::MAX),
            None => self.doubt,
        }
    }

    pub(super) fn and(self, mask: u32) -> Self {
        self.map(|bits| bits & mask)
    }

    /// With its bits at other places, or without some.
    pub(super) fn map(self, bits: impl Fn(u32) -> u32) -> Self {
        Self { bits: bits(self.bits), open: bits(self.open), ..self }.settled()
    }

    pub(super) fn or_bits(self, bits: u32) -> Self {
        Self { bits: self.bits | bits, open: self.open & !bits, ..self }.settled()
    }

    pub(super) fn xor(self, bits: u32) -> Self {
        Self { bits: (self.bits ^ bits) & !self.open, ..self }
    }

    /// `other` instead, if `sure` holds.
    pub(super) fn or(self, other: Self, sure: Holds) -> Self {
        let open = self.open | other.open | (self.bits ^ other.bits);
        let doubt = self.doubt.and(other.doubt).and(sure);
        Self { bits: self.bits & !open, open, doubt }.settled()
    }

    fn settled(self) -> Self {
        if self.open == 0 { Self::is(self.bits) } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bits_that_a_rule_may_have_set_are_open() {
        let marked = Mark::NONE.or(Mark::is(0x4001), Holds::Partly);
        let restored = Mark::is(0x8000).opened(0xff);
        for (mark, value, mask, holds) in [
            (Mark::is(5), 5, u32::MAX, Holds::Always),
            (Mark::is(5), 4, 0x5, Holds::Never),
            (Mark::is(5), 6, 0x4, Holds::Never),
            (marked, 0x4000, 0x4000, Holds::Partly),
            (marked, 0x8000, 0x8000, Holds::Never),
            (marked, 0, 0xf0, Holds::Always),
            (restored, 0x8000, 0x8000, Holds::Always),
            (restored, 0x1, 0x1, Holds::Unknown),
            (restored, 0x1, u32::MAX, Holds::Never),
            (restored.and(!0xff).or_bits(1), 0x8001, u32::MAX, Holds::Always),
            (restored.or_bits(0xf0), 0x30, 0xf0, Holds::Never),
            (restored.xor(0x8001), 0x8000, 0x8000, Holds::Never),
            (Mark::UNKNOWN, 7, u32::MAX, Holds::Unknown),
        ] {
            assert_eq!(mark.has(value, mask), holds, "{mark:?} {value:#x}/{mask:#x}");
        }
        assert_eq!(restored.is_between(1, 2), Holds::Unknown);
        assert_eq!(Mark::is(2).is_between(1, 2), Holds::Always);
        assert_eq!(restored.and(!0xff), Mark::is(0x8000));
        assert_eq!(Mark::is(3).or(Mark::is(3), Holds::Unknown), Mark::is(3));
    }
}
