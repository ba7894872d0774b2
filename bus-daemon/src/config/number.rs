//! Numbers as C writes them, as dbus-daemon reads them with `strtol(..., 0)`.

/// A number that is not negative: decimal, hexadecimal after `0x`, octal after `0`; with space around it and a `+` before it.
/// `None` for anything else, text behind the number included (of which dbus-daemon takes no notice).
pub(super) fn c_number(text: &str) -> Option<u64> {
    let is_space = |c: char| matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r');
    let text = text.trim_matches(is_space);
    let digits = text.strip_prefix('+').unwrap_or(text);
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&digits[2..], 16),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits, 10),
    };
    // A second sign is none of C's.
    if !digits.bytes().all(|digit| digit.is_ascii_alphanumeric()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_c_does() {
        for (text, number) in [
            ("0", 0),
            ("5", 5),
            ("0x5", 5),
            ("0XfF", 255),
            ("010", 8),
            ("+5", 5),
            (" 5\n", 5),
            ("\t+010 ", 8),
            ("00", 0),
        ] {
            assert_eq!(c_number(text), Some(number), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_number_is_none() {
        for text in [
            "",
            " ",
            "-1",
            "5.9",
            "5abc",
            "5 5",
            "1e1",
            "08",
            "0x",
            "+",
            "++5",
            "0x+5",
            "0+5",
            "five",
            "18446744073709551616",
        ] {
            assert_eq!(c_number(text), None, "{text:?}");
        }
    }
}
