//! [`Amount`]: bytes as a sentence has them.

use std::fmt;

/// Bytes, shown with three digits and a unit of 1000: "275 GB", "20.1 GB".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amount(pub u128);

impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 9] = ["bytes", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"];
        let mut number = self.0 as f64;
        let mut unit = 0;
        // What would be shown as 1000 is 1.00 of the next one.
        while number >= 999.5 && unit + 1 < UNITS.len() {
            number /= 1000.0;
            unit += 1;
        }
        let digits = match number {
            _ if unit == 0 => 0,
            _ if number < 9.995 => 2,
            _ if number < 99.95 => 1,
            _ => 0,
        };
        write!(f, "{number:.digits$} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_and_a_unit() {
        for (bytes, shown) in [
            (0, "0 bytes"),
            (999, "999 bytes"),
            (1000, "1.00 kB"),
            (999_600, "1.00 MB"),
            (4_194_304, "4.19 MB"),
            (20_123_456_789, "20.1 GB"),
            (274_877_906_944, "275 GB"),
            (u128::MAX, "340282366920938 YB"),
        ] {
            assert_eq!(Amount(bytes).to_string(), shown);
        }
    }
}
