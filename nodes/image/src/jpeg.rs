//! Whether a JPEG is all there. The decoder fills what is missing with grey and says nothing.

/// Whether the picture's end marker (EOI) stands where its segments lead to; one inside of a thumbnail does not count.
///
/// `bytes` begin with a JPEG's first marker (SOI). ITU-T T.81, annex B.
pub fn has_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // Between segments stands FF, perhaps several times, and what the next one is. Inside of the entropy-coded data that follows a
        // scan's header, FF 00 is a value of the data and D0 to D7 are restarts; all else that is not FF is passed over.
        let Some(offset) = bytes.get(at..).and_then(|rest| rest.iter().position(|b| *b == 0xff))
        else {
            return false;
        };
        at += offset + 1;
        match bytes.get(at) {
            None => return false,
            Some(0xd9) => return true,
            // 01 has no length either.
            Some(0x00 | 0x01 | 0xd0..=0xd7) => at += 1,
            Some(0xff) => {}
            Some(_) => {
                let Some(length) = bytes.get(at + 1..at + 3) else { return false };
                at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WHOLE: &[u8] = &[
        0xff, 0xd8, // SOI
        0xff, 0xe1, 0x00, 0x06, 0xff, 0xd9, 0xff, 0xd9, // a thumbnail's end inside of APP1
        0xff, 0xda, 0x00, 0x03, 0x01, 0x12, 0xff, 0x00, 0xff, 0xd0, 0x34, // a scan
        0xff, 0xff, 0xd9, 0x00, // EOI and rubbish
    ];

    #[test]
    fn only_the_picture_s_own_end_counts() {
        for length in 2..WHOLE.len() {
            assert_eq!(has_end(&WHOLE[..length]), length >= WHOLE.len() - 1, "{length} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes(bytes in prop::collection::vec(prop_oneof![Just(0xffu8), any::<u8>()], 0..200)) {
            has_end(&bytes);
        }
    }
}
