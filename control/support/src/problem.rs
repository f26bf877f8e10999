//! Something that is wrong.

use std::fmt::Display;
use std::io;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Tells it from others: the same problem may have another text each time.
    kind: String,
    text: String,
}

impl Problem {
    /// One of this `kind`, and what there is to say about it.
    #[must_use]
    pub fn new(kind: impl Display, text: impl Display) -> Self {
        Self { kind: kind.to_string(), text: text.to_string() }
    }

    /// One that is always the same.
    #[must_use]
    pub fn of(text: impl Display) -> Self {
        Self::new("", text)
    }

    /// A call to the system has failed.
    #[must_use]
    pub fn io(error: &io::Error, text: impl Display) -> Self {
        Self::new(format_args!("{:?}", error.kind()), text)
    }

    /// What tells it from others.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// What there is to say about it.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}
