//! ESRGAN's three ways to name the same tensors, led to Real-ESRGAN's.

/// More enlargements than any network has.
const MOST: usize = 64;

/// A way to name them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Naming {
    /// `conv_first`, `body.0.rdb1.conv1`, `conv_body`, `conv_up1`, `conv_hr`, `conv_last`.
    RealEsrgan,
    /// `conv_first`, `RRDB_trunk.0.RDB1.conv1`, `trunk_conv`, `upconv1`, `HRconv`, `conv_last`: ESRGAN's later code, BSRGAN.
    Trunk,
    /// ESRGAN's first code, modules by their number: `model.0`, `model.1.sub.0.RDB1.conv1.0`, and the convolutions
    /// after the blocks at these numbers (`model.N`), in their order.
    Numbered { after: Vec<usize> },
}

impl Naming {
    /// How these names name a network of blocks.
    pub(super) fn of(names: &[String]) -> Option<Naming> {
        let has = |start: &str| names.iter().any(|name| name.starts_with(start));
        if has("body.0.rdb1.") && has("conv_first.") {
            return Some(Naming::RealEsrgan);
        }
        if has("RRDB_trunk.0.RDB1.") && has("conv_first.") {
            return Some(Naming::Trunk);
        }
        if !has("model.1.sub.0.RDB1.") {
            return None;
        }
        let number = |name: &String| {
            let number = name.strip_prefix("model.")?.strip_suffix(".weight")?;
            number.parse::<usize>().ok().filter(|number| *number > 1)
        };
        let mut after: Vec<usize> = names.iter().filter_map(number).collect();
        after.sort_unstable();
        Some(Naming::Numbered { after })
    }

    /// Enlargements by two.
    pub(super) fn doublings(&self, names: &[String]) -> usize {
        let counted = |start: &str| {
            let is_one = |i: &usize| names.contains(&format!("{start}{i}.weight"));
            (1..=MOST).take_while(is_one).count()
        };
        match self {
            Naming::RealEsrgan => counted("conv_up"),
            Naming::Trunk => counted("upconv"),
            // The last two are no enlargements.
            Naming::Numbered { after } => after.len().saturating_sub(2),
        }
    }

    /// Real-ESRGAN's name of a tensor, where it is the network's.
    pub(super) fn translate(&self, name: &str) -> Option<String> {
        match self {
            Naming::RealEsrgan => Some(name.to_owned()),
            Naming::Trunk => {
                let pairs = [
                    ("trunk_conv.", "conv_body."),
                    ("upconv", "conv_up"),
                    ("HRconv.", "conv_hr."),
                    ("conv_first.", "conv_first."),
                    ("conv_last.", "conv_last."),
                ];
                if let Some(rest) = name.strip_prefix("RRDB_trunk.") {
                    return Some(format!("body.{}", rest.replacen(".RDB", ".rdb", 1)));
                }
                let (from, to) = pairs.iter().find(|(from, _)| name.starts_with(from))?;
                Some(name.replacen(from, to, 1))
            }
            Naming::Numbered { after } => {
                let rest = name.strip_prefix("model.")?;
                if let Some(rest) = rest.strip_prefix("0.") {
                    return Some(format!("conv_first.{rest}"));
                }
                if let Some(rest) = rest.strip_prefix("1.sub.") {
                    // The convolution is the first module of a row of two, its activation the second.
                    return match rest.split_once(".RDB") {
                        Some((block, dense)) => {
                            let (conv, kind) = dense.rsplit_once(".0.")?;
                            Some(format!("body.{block}.rdb{conv}.{kind}"))
                        }
                        None => Some(format!("conv_body.{}", rest.split_once('.')?.1)),
                    };
                }
                let (number, kind) = rest.split_once('.')?;
                let number: usize = number.parse().ok()?;
                let place = after.binary_search(&number).ok()?;
                Some(match after.len() - place {
                    1 => format!("conv_last.{kind}"),
                    2 => format!("conv_hr.{kind}"),
                    _ => format!("conv_up{}.{kind}", place + 1),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_real_esrgans() {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let old = names(&[
            "model.0.weight",
            "model.1.sub.0.RDB1.conv1.0.weight",
            "model.1.sub.1.weight",
            "model.10.weight",
            "model.3.weight",
            "model.6.weight",
            "model.8.weight",
        ]);
        let naming = Naming::of(&old).unwrap();
        assert_eq!(naming.doublings(&old), 2);
        let found: Vec<_> = old.iter().map(|name| naming.translate(name).unwrap()).collect();
        let wanted = [
            "conv_first.weight",
            "body.0.rdb1.conv1.weight",
            "conv_body.weight",
            "conv_last.weight",
            "conv_up1.weight",
            "conv_up2.weight",
            "conv_hr.weight",
        ];
        assert_eq!(found, wanted);
        let trunk = names(&[
            "RRDB_trunk.0.RDB3.conv5.bias",
            "conv_first.bias",
            "upconv1.weight",
            "RRDB_trunk.0.RDB1.conv1.bias",
        ]);
        let naming = Naming::of(&trunk).unwrap();
        assert_eq!((naming.clone(), naming.doublings(&trunk)), (Naming::Trunk, 1));
        assert_eq!(naming.translate(&trunk[0]).unwrap(), "body.0.rdb3.conv5.bias");
        assert_eq!(naming.translate(&trunk[2]).unwrap(), "conv_up1.weight");
        // Of strangers' files: no names, and numbers that are none.
        assert_eq!(Naming::of(&[]), None);
        let odd = Naming::Numbered { after: vec![] };
        for name in ["model.99.weight", "model.x", "model.", "model.1.sub.RDB", "model.1.sub.1"] {
            assert_eq!(odd.translate(name), None, "{name}");
        }
    }
}
