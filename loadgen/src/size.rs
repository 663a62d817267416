//! Sizes of memory as they are written on the command line: `16M` is 16 MiB.

use parse_size::{ByteSuffix, Config};

use crate::record::PAGE_SIZE;

/// The units, as powers of two.
const UNITS: [(u32, &str); 3] = [(30, "G"), (20, "M"), (10, "K")];

/// Bytes, with or without a unit: whole pages, from `least_bytes` to `most_bytes`.
pub fn parse_size(text: &str, least_bytes: u64, most_bytes: u64) -> Result<u64, String> {
    let config = Config::new().with_binary().with_byte_suffix(ByteSuffix::Deny);
    let bytes = config
        .parse_size(text)
        .map_err(|_| "it is not a number of bytes, with or without K, M or G".to_owned())?;
    if bytes.is_multiple_of(PAGE_SIZE as u64) && (least_bytes..=most_bytes).contains(&bytes) {
        return Ok(bytes);
    }
    let [least, most] = [least_bytes, most_bytes].map(size_text);
    Err(format!("it is not a multiple of 4K from {least} to {most}"))
}

/// A size in the biggest unit of which it is a whole number.
pub(crate) fn size_text(bytes: u64) -> String {
    let whole = |(shift, _): &&(u32, &str)| bytes > 0 && bytes.is_multiple_of(1 << shift);
    match UNITS.iter().find(whole) {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let size = |text| parse_size(text, 0, 60 << 30);
        assert_eq!(size("2M"), Ok(2 << 20));
        assert_eq!(size("60g"), Ok(60 << 30));
        assert_eq!(size("1.5M"), Ok(3 << 19));
        assert_eq!(size("4096"), Ok(4096));
        assert_eq!(size("0"), Ok(0));
        for text in ["", "M", "4095", "1.5K", "-4K", "61G", "99999999999G", "2MB", "2MiB", "ä"] {
            assert!(size(text).is_err(), "{text}");
        }
        let refused = parse_size("2G", 4096, 1 << 30);
        assert_eq!(refused, Err("it is not a multiple of 4K from 4K to 1G".to_owned()));
    }

    #[test]
    fn a_size_reads_back() {
        for text in ["0", "4K", "4036K", "16M", "1G", "60G", "1025M"] {
            assert_eq!(parse_size(text, 0, 60 << 30).map(size_text).as_deref(), Ok(text));
        }
    }
}
