//! Changes to inputs, by chance that a seed repeats.

/// See the module.
pub struct Mutator {
    state: u64,
}

/// Numbers that programs are wrong about.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
];

/// The same, as text has them, and what else stands where a number or a word was.
const WORDS: [&str; 18] = [
    "-1",
    "0",
    "1e999",
    "-1e-320",
    "NaN",
    "Infinity",
    "18446744073709551616",
    "9007199254740993",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "[\"1\", 0]",
    "\"../../x\"",
    "\\u0000",
    "\u{202e}",
    "{\"__value__\": 1}",
];

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self { state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 }
    }

    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, or 0 where that is 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() >> 11) as usize % end.max(1)
    }

    /// One of the pool with one to eight changes.
    pub fn mutated(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = pool[self.below(pool.len())].clone();
        for _ in 0..=self.below(8) {
            self.change(&mut input, pool);
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let at = self.below(input.len());
        let some = self.below(64).min(input.len() - at);
        match self.below(9) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 if !input.is_empty() => input[at] = self.next() as u8,
            2 => drop(input.drain(at..at + some)),
            3 => {
                let copied = input[at..at + some].to_vec();
                let to = self.below(input.len());
                input.splice(to..to, copied);
            }
            4 => {
                let number = NUMBERS[self.below(NUMBERS.len())];
                let bytes = match self.below(4) {
                    0 => number.to_le_bytes().to_vec(),
                    1 => number.to_be_bytes().to_vec(),
                    2 => (number as u32).to_le_bytes().to_vec(),
                    _ => (number as u16).to_be_bytes().to_vec(),
                };
                let end = (at + bytes.len()).min(input.len());
                input.splice(at..end, bytes);
            }
            5 => input.truncate(at),
            6 => {
                let other = &pool[self.below(pool.len())];
                let from = self.below(other.len());
                let length = self.below(256).min(other.len() - from);
                input.splice(at..at + some, other[from..from + length].iter().copied());
            }
            // Texts: in the place of a number, or of whatever is there.
            7 => {
                let digits = |byte: &u8| byte.is_ascii_digit() || b"-.".contains(byte);
                let begin = input[at..].iter().position(digits).map_or(at, |more| at + more);
                let length = input[begin..].iter().take_while(|byte| digits(byte)).count();
                let word = WORDS[self.below(WORDS.len())];
                input.splice(begin..begin + length, word.bytes());
            }
            _ => {
                let word = WORDS[self.below(WORDS.len())];
                input.splice(at..at, word.bytes());
            }
        }
    }
}
