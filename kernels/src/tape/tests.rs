use candle_core::{Device, Result, Tensor, Var};

use super::*;
use crate::{add, conv2d, group_norm_silu, join_channels, layer_norm, linear, low_rank_linear};
use crate::{attention_of_projections, geglu, pixels_to_tokens, tokens_to_pixels};

/// A small network of most operators, and of the tensor library's own between them.
struct Network {
    /// By number: two convolutions' weights, down and up of a change, a scale and a shift.
    learns: Vec<Var>,
    frozen: Vec<Tensor>,
}

impl Network {
    fn new() -> Result<Network> {
        let dev = Device::Cpu;
        let learns = [&[8, 8, 3, 3][..], &[8, 16, 1, 1], &[2, 8], &[8, 2], &[8], &[8]];
        let frozen = [&[16, 8][..], &[8, 8], &[8, 8], &[8]];
        Ok(Network {
            learns: learns
                .iter()
                .map(|s| Var::randn(0f32, 0.5, *s, &dev))
                .collect::<Result<_>>()?,
            frozen: frozen
                .iter()
                .map(|s| Tensor::randn(0f32, 0.5, *s, &dev))
                .collect::<Result<_>>()?,
        })
    }

    fn first(&self, x: &Tensor) -> Result<Tensor> {
        let [conv, _, down, up, scale, shift] = &self.learns[..] else { panic!("six") };
        let h = group_norm_silu(x, scale, shift, 2, 1e-5)?;
        let h = add(x, &conv2d(&h, conv, None, 1, 1)?)?;
        let tokens = pixels_to_tokens(&h)?;
        let normed = layer_norm(&tokens, scale, shift, 1e-5)?;
        let q = low_rank_linear(&normed, &self.frozen[1], None, [down, up], 0.7)?;
        let k = linear(&normed, &self.frozen[2], Some(&self.frozen[3]))?;
        // The tensor library's: twice its half, and a part that an operator takes.
        let v = ((&normed * 0.5)? + (&k * 0.25)?)?;
        let y = add(&tokens, &attention_of_projections(&q, &k, &v, 2, None, 0.5)?)?;
        let hidden = geglu(&linear(&y, &self.frozen[0], None)?)?;
        let y = y.narrow(2, 0, 8)?;
        let y = add(&y, &low_rank_linear(&hidden, &self.frozen[1], None, [down, up], 0.7)?)?;
        let (_, _, height, width) = x.dims4()?;
        add(&h, &tokens_to_pixels(&y, height, width)?)
    }

    fn second(&self, x: &Tensor, skip: &Tensor) -> Result<Tensor> {
        let joined = join_channels(x, skip)?;
        conv2d(&joined, &self.learns[1], None, 1, 0)
    }

    fn loss(&self, x: &Tensor, by_blocks: bool) -> Result<Tensor> {
        let run = |number: usize, inputs: &[Tensor]| self.again(number, inputs);
        let (a, b) = if by_blocks {
            let a = block(0, &[x], |inputs| run(0, inputs))?;
            (a.clone(), block(1, &[&a, x], |inputs| run(1, inputs))?)
        } else {
            let a = self.first(x)?;
            (a.clone(), self.second(&a, x)?)
        };
        (add(&a, &b)?.sqr()? * 0.1)?.mean_all()
    }

    fn again(&self, number: usize, inputs: &[Tensor]) -> Result<Tensor> {
        match number {
            0 => self.first(&inputs[0]),
            _ => self.second(&inputs[0], &inputs[1]),
        }
    }
}

fn values(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all()?.to_vec1()
}

#[test]
fn gradients_are_those_of_the_tensor_library_s_pass() -> Result<()> {
    let network = Network::new()?;
    let x = Var::randn(0f32, 1., (2, 8, 5, 6), &Device::Cpu)?;
    // What was computed before and is no variable.
    let scaled = (x.as_tensor() * 1.5)?;
    let theirs = network.loss(&scaled, false)?.backward()?;
    let mut found = Vec::new();
    for by_blocks in [false, true] {
        let (loss, tape) = record(|| network.loss(&scaled, by_blocks));
        let gradients =
            tape.backward_with(&loss?, &|number, inputs| network.again(number, inputs))?;
        found.push(gradients);
    }
    for variable in network.learns.iter().chain([&x]) {
        let want = values(theirs.get(variable).expect("the tensor library's"))?;
        let [whole, again] = [0, 1].map(|i| found[i].get(variable).map(values).transpose());
        let (whole, again) = (whole?.expect("ours"), again?.expect("ours, by blocks"));
        assert_eq!(whole, again);
        let largest = want.iter().fold(0f32, |a, b| a.max(b.abs()));
        for (ours, want) in whole.iter().zip(&want) {
            assert!((ours - want).abs() <= 2e-5 * largest, "{ours} is not {want}");
        }
    }
    Ok(())
}

#[test]
fn nothing_is_recorded_of_what_does_not_learn_or_outside() -> Result<()> {
    let network = Network::new()?;
    let x = Tensor::randn(0f32, 1., (1, 8, 4, 4), &Device::Cpu)?;
    let w = Tensor::randn(0f32, 1., (8, 8, 3, 3), &Device::Cpu)?;
    let (y, tape) = record(|| conv2d(&x, &w, None, 1, 1));
    assert!(!y?.track_op() && tape.entries.is_empty());
    assert!(!network.first(&x)?.is_variable());
    let told = block(0, &[&network.first(&x)?], |inputs| Ok(inputs[0].clone()));
    assert!(told.unwrap_err().to_string().contains("where gradients are recorded"));
    Ok(())
}

#[test]
fn what_no_gradient_is_computed_from_is_not_kept() -> Result<()> {
    let x = Var::randn(0f32, 1., (1, 8, 4, 4), &Device::Cpu)?;
    let w = Tensor::randn(0f32, 1., (8, 8, 3, 3), &Device::Cpu)?;
    let (y, tape) = record(|| conv2d(&x, &w, None, 1, 1));
    let [Entry::Operator { inputs, result, .. }] = &tape.entries[..] else { panic!("one entry") };
    assert_eq!((inputs[0].id, result.id), (x.id(), y?.id()));
    let has_values = |entered: &Entered| entered.tensor.id() == entered.id;
    assert!(!has_values(&inputs[0]) && has_values(&inputs[1]) && !has_values(result));
    Ok(())
}
