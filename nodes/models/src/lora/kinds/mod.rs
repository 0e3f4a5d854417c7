//! The kinds of layers: how each makes the change of a weight from its factors. Every kind is a file.
//!
//! The formulas are LyCORIS' (Yeh et al., "Navigating Text-To-Image Customization", arXiv 2309.14859),
//! and ComfyUI's where the two differ.

mod butterfly;
mod difference;
mod glora;
mod hadamard;
mod ia3;
mod kronecker;
mod low_rank;
mod orthogonal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use candle_core::{Result as CandleResult, Tensor};

use super::LoraError;
use super::dora::Dora;
use super::factor::Factor;

pub(super) use butterfly::Butterfly;
pub(super) use difference::Difference;
pub(super) use glora::GLora;
pub(super) use hadamard::Hadamard;
pub(super) use ia3::Ia3;
pub(super) use kronecker::Kronecker;
pub(super) use low_rank::LowRank;
pub(super) use orthogonal::Orthogonal;

/// The factors of one layer, all of them f32, and what errors call it.
pub(super) struct Factors<'a> {
    pub(super) module: &'a str,
    pub(super) tensors: &'a BTreeMap<Factor, Tensor>,
    pub(super) alpha: Option<f64>,
}

type Read<T> = std::result::Result<T, LoraError>;

impl Factors<'_> {
    pub(super) fn get(&self, factor: Factor) -> Option<Tensor> {
        self.tensors.get(&factor).cloned()
    }

    pub(super) fn has(&self, factors: &[Factor]) -> bool {
        factors.iter().any(|factor| self.tensors.contains_key(factor))
    }

    /// A factor that another one is nothing without.
    fn need(&self, factor: Factor) -> Read<Tensor> {
        self.get(factor).ok_or_else(|| LoraError::Incomplete {
            layer: self.module.to_owned(),
            missing: factor.name(),
        })
    }

    fn damaged(&self, what: String) -> LoraError {
        LoraError::Damaged { layer: self.module.to_owned(), what }
    }

    /// What a tensor is, for [`Factors::damaged`].
    fn called(factor: Factor, tensor: &Tensor) -> String {
        format!("its `{}` {:?}", factor.end(), tensor.dims())
    }

    /// Two factors that are multiplied with each other: [n, rank] and [rank, m], more axes of the
    /// second taken with its last.
    fn product(&self, left: Factor, right: Factor) -> Read<(Tensor, Tensor)> {
        let (a, b) = (self.need(left)?, self.need(right)?);
        let fit = a.rank() >= 2 && b.rank() >= 2 && a.dims()[2..].iter().all(|one| *one == 1);
        if !fit || a.dims()[1] != b.dims()[0] {
            let (a, b) = (Self::called(left, &a), Self::called(right, &b));
            return Err(
                self.damaged(format!("{a} and {b} are no pair of [out, rank] and [rank, in]"))
            );
        }
        Ok((a, b))
    }

    /// A convolution after Tucker: the core t [rank, rank, kH, kW], and what its two sides are multiplied
    /// with, a [rank, out] and b [rank, in].
    fn tucker(&self, core: Factor, a: Factor, b: Factor) -> Read<Tucker> {
        let (t, a_, b_) = (self.need(core)?, self.need(a)?, self.need(b)?);
        let fit = t.rank() == 4 && a_.rank() == 2 && b_.rank() == 2;
        if !fit || t.dims()[0] != a_.dims()[0] || t.dims()[1] != b_.dims()[0] {
            let (t, a, b) = (Self::called(core, &t), Self::called(a, &a_), Self::called(b, &b_));
            let right = "[rank, rank, height, width], [rank, out] and [rank, in]";
            return Err(self.damaged(format!("{t}, {a} and {b} are not of the shapes {right}")));
        }
        Ok(Tucker { core: t, a: a_, b: b_ })
    }

    /// alpha / rank, 1 without an alpha.
    fn scale(&self, rank: usize) -> Read<f64> {
        let scale = self.alpha.map_or(1.0, |alpha| alpha / rank as f64);
        if scale.is_finite() {
            return Ok(scale);
        }
        Err(LoraError::Factor { layer: self.module.to_owned(), factor: scale })
    }
}

/// See [`Factors::tucker`].
#[derive(Clone, Debug)]
struct Tucker {
    core: Tensor,
    a: Tensor,
    b: Tensor,
}

impl Tucker {
    /// [out, in, kH, kW].
    fn shape(&self) -> Vec<usize> {
        let core = self.core.dims();
        vec![self.a.dims()[1], self.b.dims()[1], core[2], core[3]]
    }

    /// The weight that it stands for, [out, in, kH, kW].
    fn whole(&self) -> CandleResult<Tensor> {
        let (left, right, height, width) = self.core.dims4()?;
        let (_, input) = self.b.dims2()?;
        // Σ_j t[i, j, y, x] b[j, n], as [i, y, x, n]
        let core = self.core.permute((0, 2, 3, 1))?.reshape((left * height * width, right))?;
        let core = core.matmul(&self.b)?.reshape((left, height * width * input))?;
        let whole = self.a.t()?.contiguous()?.matmul(&core)?;
        whole.reshape(((), height, width, input))?.permute((0, 3, 1, 2))?.contiguous()
    }
}

/// One of the kinds.
#[derive(Clone, Debug)]
pub(super) enum Kind {
    LowRank(LowRank),
    Hadamard(Hadamard),
    Kronecker(Kronecker),
    GLora(GLora),
    Orthogonal(Orthogonal),
    Butterfly(Butterfly),
    Ia3(Ia3),
    Difference(Difference),
    /// The weight becomes this one, at any strength.
    Whole(Difference),
}

impl Kind {
    /// The kind that the factors show. Of two that a file has for one weight, the later one of ComfyUI's
    /// order counts.
    ///
    /// # Errors
    /// A factor is missing, or the shapes do not fit each other.
    pub(super) fn of(factors: &Factors) -> Read<Option<Kind>> {
        use Factor as F;
        let low_rank = [F::Up, F::Down, F::Mid];
        let hadamard = [F::HadaW1A, F::HadaW1B, F::HadaW2A, F::HadaW2B, F::HadaT1, F::HadaT2];
        let kronecker =
            [F::LokrW1, F::LokrW1A, F::LokrW1B, F::LokrW2, F::LokrW2A, F::LokrW2B, F::LokrT2];
        Ok(if let Some(whole) = factors.get(F::SetWeight) {
            Some(Kind::Whole(Difference(whole)))
        } else if let Some(difference) = factors.get(F::Diff).or_else(|| factors.get(F::WNorm)) {
            Some(Kind::Difference(Difference(difference)))
        } else if factors.has(&[F::OftBlocks]) {
            Some(match factors.need(F::OftBlocks)?.rank() {
                4 => Kind::Butterfly(Butterfly::read(factors)?),
                _ => Kind::Orthogonal(Orthogonal::read(factors)?),
            })
        } else if factors.has(&[F::A1, F::A2, F::B1, F::B2]) {
            Some(Kind::GLora(GLora::read(factors)?))
        } else if factors.has(&kronecker) {
            Some(Kind::Kronecker(Kronecker::read(factors)?))
        } else if factors.has(&hadamard) {
            Some(Kind::Hadamard(Hadamard::read(factors)?))
        } else if factors.has(&low_rank) {
            Some(Kind::LowRank(LowRank::read(factors)?))
        } else if factors.has(&[F::Ia3, F::OnInput]) {
            Some(Kind::Ia3(Ia3::read(factors)?))
        } else {
            None
        })
    }

    /// Does it change a weight of this shape?
    fn fits(&self, weight: &[usize]) -> bool {
        match self {
            Kind::LowRank(kind) => kind.fits(weight),
            Kind::Hadamard(kind) => kind.fits(weight),
            Kind::Kronecker(kind) => kind.fits(weight),
            Kind::GLora(kind) => kind.fits(weight),
            Kind::Orthogonal(kind) => kind.fits(weight),
            Kind::Butterfly(kind) => kind.fits(weight),
            Kind::Ia3(kind) => kind.fits(weight),
            Kind::Difference(kind) | Kind::Whole(kind) => kind.fits(weight),
        }
    }

    /// The weights that it changes, in words.
    fn wanted(&self) -> String {
        match self {
            Kind::LowRank(kind) => format!("{:?}", kind.shape()),
            Kind::Hadamard(kind) => kind.wanted(),
            Kind::Kronecker(kind) => kind.wanted(),
            Kind::GLora(kind) => kind.wanted(),
            Kind::Orthogonal(kind) => kind.wanted(),
            Kind::Butterfly(kind) => kind.wanted(),
            Kind::Ia3(kind) => kind.wanted(),
            Kind::Difference(kind) | Kind::Whole(kind) => format!("{:?}", kind.0.dims()),
        }
    }

    /// What is added to `weight`, f32, at strength 1, in its shape. The strength is given for those that
    /// depend on it otherwise than in proportion.
    fn change(&self, weight: &Tensor, strength: f64) -> CandleResult<Tensor> {
        let change = match self {
            Kind::LowRank(kind) => kind.change(),
            Kind::Hadamard(kind) => kind.change(),
            Kind::Kronecker(kind) => kind.change(),
            Kind::GLora(kind) => kind.change(weight),
            Kind::Orthogonal(kind) => kind.change(weight, strength),
            Kind::Butterfly(kind) => kind.change(weight, strength),
            Kind::Ia3(kind) => kind.change(weight),
            Kind::Difference(kind) => Ok(kind.0.clone()),
            Kind::Whole(kind) => kind.0.reshape(weight.shape())? - weight,
        };
        change?.reshape(weight.shape())
    }
}

/// The change of one tensor of a network.
#[derive(Clone, Debug)]
pub(super) struct Change {
    kind: Kind,
    dora: Option<Dora>,
}

impl Change {
    pub(super) fn new(kind: Kind, dora: Option<Dora>) -> Change {
        Change { kind, dora }
    }

    pub(super) fn fits(&self, weight: &[usize]) -> bool {
        self.kind.fits(weight) && self.dora.as_ref().is_none_or(|dora| dora.fits(weight))
    }

    /// The weights that it changes, in words.
    pub(super) fn wanted(&self) -> String {
        match &self.dora {
            None => self.kind.wanted(),
            Some(dora) => format!("{}, {}", self.kind.wanted(), dora.wanted()),
        }
    }

    /// The two matrices of a plain product: see [`LowRank::matrices`]. Nothing for other kinds.
    pub(super) fn matrices(&self, strength: f64) -> Option<CandleResult<(Tensor, Tensor)>> {
        match (&self.kind, &self.dora) {
            (Kind::LowRank(kind), None) => Some(kind.matrices(strength)),
            _ => None,
        }
    }

    /// `weight`, f32, with the change.
    pub(super) fn apply(&self, weight: &Tensor, strength: f64) -> CandleResult<Tensor> {
        let change = self.kind.change(weight, strength)?;
        match (&self.dora, &self.kind) {
            (Some(dora), _) => dora.apply(weight, &change, strength),
            (None, Kind::Whole(_)) => weight + change,
            (None, _) => weight + (change * strength)?,
        }
    }
}

/// A shape as a matrix: its first axis, and all others as one.
fn as_matrix(shape: &[usize]) -> Option<(usize, usize)> {
    let (first, rest) = shape.split_first()?;
    Some((*first, rest.iter().fold(1, |product: usize, length| product.saturating_mul(*length))))
}

/// A tensor as a matrix: its first axis, and all others as one.
fn flat(tensor: &Tensor) -> CandleResult<Tensor> {
    tensor.reshape((tensor.dim(0)?, ()))
}
