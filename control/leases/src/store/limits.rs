//! How much of what a store holds is taken: who writes there may be broken or hostile.

/// How much of a store's leases is kept in memory: who writes there may be broken or hostile.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    keys: usize,
    bytes: usize,
}

impl Room {
    /// What is left for one store.
    pub const ALL: Self = Self { keys: MAX_KEYS, bytes: MAX_BYTES };

    /// Takes the place of a key and its value, if there is room for it.
    pub(super) fn take(&mut self, key: impl AsRef<[u8]>, value: &[u8]) -> bool {
        let keys = self.keys.checked_sub(1);
        let bytes = self.bytes.checked_sub(key.as_ref().len() + value.len());
        let Some((keys, bytes)) = keys.zip(bytes) else { return false };
        *self = Self { keys, bytes };
        true
    }
}

/// A network configuration as text; of one that is too long, words that are none. Go replaces what is not
/// UTF-8 inside a JSON text, too.
pub(super) fn config_text(bytes: &[u8]) -> String {
    if bytes.len() > MAX_CONFIG {
        return format!("(longer than {MAX_CONFIG} bytes)");
    }
    String::from_utf8_lossy(bytes).into_owned()
}

/// `value`, cut so that its reader sees that it is too long.
pub(super) fn bounded(value: &[u8], most: usize) -> Vec<u8> {
    value[..value.len().min(most + 1)].to_vec()
}

/// The most lease keys of a store that are used: ten times the nodes of the largest network that is tested.
pub const MAX_KEYS: usize = 1_000_000;
/// The most that they and their values may have, in bytes: 500 a key.
const MAX_BYTES: usize = 500 * MAX_KEYS;

/// The longest value that can be a lease's, in bytes. Nodes write 150.
pub const MAX_VALUE: usize = 4096;

/// The longest network configuration, in bytes.
pub(super) const MAX_CONFIG: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_for_so_many_keys_and_for_so_many_bytes() {
        let mut few = Room { keys: 2, bytes: 100 };
        assert_eq!([few.take("a", b"1"), few.take("b", b"2"), few.take("c", b"3")], [true, true, false]);
        let mut short = Room { keys: 100, bytes: 10 };
        assert_eq!(
            [
                short.take("key", b"1234"),
                short.take("key", b"1"),
                short.take("k", b"12"),
                short.take("", b"1")
            ],
            [true, false, true, false]
        );
    }
}
