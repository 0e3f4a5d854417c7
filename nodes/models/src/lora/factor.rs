//! The tensors that a layer of a LoRA is made of.

/// What a tensor is to its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Factor {
    Up,
    Down,
    Mid,
    DoraScale,
    Magnitude,
    HadaW1A,
    HadaW1B,
    HadaW2A,
    HadaW2B,
    HadaT1,
    HadaT2,
    LokrW1,
    LokrW1A,
    LokrW1B,
    LokrW2,
    LokrW2A,
    LokrW2B,
    LokrT2,
    A1,
    A2,
    B1,
    B2,
    OftBlocks,
    Rescale,
    Ia3,
    OnInput,
    Diff,
    DiffB,
    SetWeight,
    WNorm,
    BNorm,
}

/// Every factor: what "lora/2" of node.h calls it, and how its name ends in a file. Those of a plain
/// LoRA have more ends than one: see [`super::names`].
pub const FACTORS: [(Factor, &str, &str); 31] = [
    (Factor::Up, "up", ".lora_up.weight"),
    (Factor::Down, "down", ".lora_down.weight"),
    (Factor::Mid, "mid", ".lora_mid.weight"),
    (Factor::DoraScale, "dora_scale", ".dora_scale"),
    (Factor::Magnitude, "magnitude", ".lora_magnitude_vector"),
    (Factor::HadaW1A, "hada_w1_a", ".hada_w1_a"),
    (Factor::HadaW1B, "hada_w1_b", ".hada_w1_b"),
    (Factor::HadaW2A, "hada_w2_a", ".hada_w2_a"),
    (Factor::HadaW2B, "hada_w2_b", ".hada_w2_b"),
    (Factor::HadaT1, "hada_t1", ".hada_t1"),
    (Factor::HadaT2, "hada_t2", ".hada_t2"),
    (Factor::LokrW1, "lokr_w1", ".lokr_w1"),
    (Factor::LokrW1A, "lokr_w1_a", ".lokr_w1_a"),
    (Factor::LokrW1B, "lokr_w1_b", ".lokr_w1_b"),
    (Factor::LokrW2, "lokr_w2", ".lokr_w2"),
    (Factor::LokrW2A, "lokr_w2_a", ".lokr_w2_a"),
    (Factor::LokrW2B, "lokr_w2_b", ".lokr_w2_b"),
    (Factor::LokrT2, "lokr_t2", ".lokr_t2"),
    (Factor::A1, "a1", ".a1.weight"),
    (Factor::A2, "a2", ".a2.weight"),
    (Factor::B1, "b1", ".b1.weight"),
    (Factor::B2, "b2", ".b2.weight"),
    (Factor::OftBlocks, "oft_blocks", ".oft_blocks"),
    (Factor::Rescale, "rescale", ".rescale"),
    (Factor::Ia3, "ia3", ".weight"),
    (Factor::OnInput, "on_input", ".on_input"),
    (Factor::Diff, "diff", ".diff"),
    (Factor::DiffB, "diff_b", ".diff_b"),
    (Factor::SetWeight, "set_weight", ".set_weight"),
    (Factor::WNorm, "w_norm", ".w_norm"),
    (Factor::BNorm, "b_norm", ".b_norm"),
];

impl Factor {
    /// What "lora/2" calls it.
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The factor that "lora/2" calls `name`.
    pub fn of_name(name: &str) -> Option<Factor> {
        FACTORS.iter().find(|(_, known, _)| *known == name).map(|(factor, ..)| *factor)
    }

    /// How its name in a file ends, without the dot.
    pub(super) fn end(self) -> &'static str {
        &self.row().2[1..]
    }

    fn row(self) -> &'static (Factor, &'static str, &'static str) {
        // The table has them in the order of their declaration, which a test holds it to.
        &FACTORS[self as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_every_factor_at_its_place() {
        for (index, (factor, name, end)) in FACTORS.iter().enumerate() {
            assert_eq!(*factor as usize, index);
            assert!(end.starts_with('.') && Factor::of_name(name) == Some(*factor), "{name}");
        }
        assert_eq!(Factor::BNorm as usize + 1, FACTORS.len());
    }
}
