//! Numbers as a person reads them.

/// Bytes.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    scaled(bytes as f64, 1024.0, &UNITS)
}

/// Bytes a second, as bits.
pub fn bits(bytes_per_second: f64) -> String {
    const UNITS: [&str; 5] = ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    scaled(8.0 * bytes_per_second, 1000.0, &UNITS)
}

/// Things a second.
pub fn count(per_second: f64) -> String {
    scaled(per_second, 1000.0, &["/s", "k/s", "M/s", "G/s"])
}

/// A part of a whole processor.
pub fn share(part: f64) -> String {
    format!("{:.0} %", 100.0 * part)
}

/// A time span.
pub fn millis(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{} s", ms / 1_000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        7_200_000..172_800_000 => format!("{} h", ms / 3_600_000),
        _ => format!("{} days", ms / 86_400_000),
    }
}

/// How long ago something was, if it ever was.
pub fn ago(ms: Option<u64>) -> String {
    ms.map_or_else(|| "never".to_owned(), |ms| format!("{} ago", millis(ms)))
}

/// What makes a word a plural.
pub fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let mut value = value;
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    if unit == 0 { format!("{value:.0} {}", units[0]) } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_unit_a_person_would_use() {
        assert_eq!([0, 1023, 1536, 5 << 30].map(size), ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
        assert_eq!([0.0, 124.0, 1.25e9].map(bits), ["0 bit/s", "992 bit/s", "10.0 Gbit/s"]);
        assert_eq!([12.4, 167_000.0].map(count), ["12 /s", "167.0 k/s"]);
        assert_eq!(
            [999, 1_000, 119_999, 120_000, 172_800_000].map(millis),
            ["999 ms", "1 s", "119 s", "2 min", "2 days"]
        );
        assert_eq!((ago(None), ago(Some(5))), ("never".to_owned(), "5 ms ago".to_owned()));
        assert_eq!(share(0.987), "99 %");
    }
}
