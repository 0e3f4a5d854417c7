//! What is trained: variables by name, and their gradients.

use std::collections::{BTreeMap, HashMap};

use candle_core::{Tensor, Var};
use kosmograph_models::stable_diffusion::recompute::{TapeGradients, record};
use kosmograph_models::{Weight, Weights};
use rayon::prelude::*;

use crate::error::{Error, Result};

/// The variables of a training by name, in the order of their names, which everything that runs over them keeps.
#[derive(Clone, Debug, Default)]
pub struct Parameters(BTreeMap<String, Var>);

impl Parameters {
    /// Variables with the values of those of `tensors` whose names `is_trained`, in f32.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn of(
        tensors: &HashMap<String, Weight>,
        is_trained: impl Fn(&str) -> bool,
    ) -> Result<Parameters> {
        let mut parameters = Parameters::default();
        for (name, weight) in tensors.iter().filter(|(name, _)| is_trained(name)) {
            parameters.insert(name.clone(), &weight.tensor()?)?;
        }
        Ok(parameters)
    }

    /// Adds a variable with the values of `tensor`, in f32 and in memory of its own.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn insert(&mut self, name: String, tensor: &Tensor) -> Result<()> {
        let tensor = tensor.detach().to_dtype(candle_core::DType::F32)?;
        // A variable of its own memory: the tensor's may be another network's.
        let var = Var::from_tensor(&tensor.force_contiguous()?)?;
        self.0.insert(name, var);
        Ok(())
    }

    /// The variable of this name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.0.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Var)> {
        self.0.iter()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers they are.
    pub fn count(&self) -> usize {
        self.0.values().map(|var| var.elem_count()).sum()
    }

    /// `tensors` with the variables in the places of those that have their names: what a network is loaded from.
    pub fn replace_in(&self, tensors: &HashMap<String, Weight>) -> HashMap<String, Weight> {
        let mut replaced = tensors.clone();
        for (name, var) in &self.0 {
            replaced.insert(name.clone(), var.as_tensor().clone().into());
        }
        replaced
    }

    /// A network that `load` reads, whose tensors `weights` has in memory, with these variables in their places.
    ///
    /// # Errors
    /// What `load` reports.
    pub fn load<N>(
        &self,
        weights: &Weights,
        load: impl Fn(&Weights) -> kosmograph_models::Result<N>,
    ) -> Result<N> {
        let (_, tensors) = weights.load_kept(&load)?;
        let tensors = self.replace_in(&tensors);
        Ok(load(&Weights::from_kept(weights.origin(), tensors, weights.device()))?)
    }

    /// The values of all, by name.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn values(&self) -> Result<BTreeMap<String, Vec<f32>>> {
        let values =
            |(name, var): (&String, &Var)| Ok((name.clone(), var.flatten_all()?.to_vec1::<f32>()?));
        self.0.iter().map(values).collect()
    }

    /// Gives the variable `name` other values.
    ///
    /// # Errors
    /// There is none of that name, or it has another number of values.
    pub fn set(&self, name: &str, values: Vec<f32>) -> Result<()> {
        let var = self.0.get(name).ok_or_else(|| Error::NoParameter(name.to_owned()))?;
        var.set(&Tensor::from_vec(values, var.shape(), var.device())?)?;
        Ok(())
    }
}

/// Gradients by the names of the parameters. A parameter that has none is left alone by every optimiser.
#[derive(Clone, Debug, Default)]
pub struct Gradients(pub(crate) BTreeMap<String, Vec<f32>>);

impl Gradients {
    /// The scalar that `loss` computes, and its gradients by `parameters`.
    ///
    /// # Errors
    /// What `loss` reports; else only what the tensor library does.
    pub fn of_loss(
        parameters: &Parameters,
        loss: impl FnOnce() -> Result<Tensor>,
    ) -> Result<(f64, Gradients)> {
        let (loss, recorded) = record(loss);
        let loss = loss?;
        let value = f64::from(loss.to_scalar::<f32>()?);
        Ok((value, Gradients::of(parameters, &recorded.backward(&loss)?)?))
    }

    /// Those that a backward pass found for `parameters`.
    ///
    /// # Errors
    /// Only what the tensor library reports.
    pub fn of(parameters: &Parameters, found: &TapeGradients) -> Result<Gradients> {
        let mut gradients = Gradients::default();
        for (name, var) in parameters.iter() {
            if let Some(gradient) = found.get(var) {
                gradients.0.insert(name.clone(), gradient.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        Ok(gradients)
    }

    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.0.get(name).map(Vec::as_slice)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Vec<f32>)> {
        self.0.iter()
    }

    /// Adds those of another batch.
    pub fn add(&mut self, other: Gradients) {
        for (name, values) in other.0 {
            match self.0.get_mut(&name) {
                Some(sum) => sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value),
                None => {
                    self.0.insert(name, values);
                }
            }
        }
    }

    /// Multiplies all by `factor`.
    pub fn scale(&mut self, factor: f64) {
        let factor = factor as f32;
        self.0.par_iter_mut().for_each(|(_, values)| {
            values.iter_mut().for_each(|value| *value *= factor);
        });
    }

    /// Makes the gradient of row `row` of a table [rows, columns] zero, for a token that takes part and does not learn,
    /// as torch's `padding_idx` does.
    pub fn freeze_row(&mut self, name: &str, row: usize, columns: usize) {
        if let Some(values) = self.0.get_mut(name)
            && let Some(row) = values.get_mut(row * columns..(row + 1) * columns)
        {
            row.fill(0.0);
        }
    }

    /// Keeps of a table [rows, columns] the gradients of `rows` alone.
    pub fn keep_rows(&mut self, name: &str, rows: std::ops::Range<usize>, columns: usize) {
        if let Some(values) = self.0.get_mut(name) {
            for (row, values) in values.chunks_mut(columns.max(1)).enumerate() {
                if !rows.contains(&row) {
                    values.fill(0.0);
                }
            }
        }
    }

    /// √Σ g² over all.
    pub fn norm(&self) -> f64 {
        let squares = self.0.par_iter().map(|(_, values)| {
            values.iter().map(|value| f64::from(*value) * f64::from(*value)).sum::<f64>()
        });
        // One sum for each, added in the order of the names: the same on any number of threads.
        squares.collect::<Vec<f64>>().iter().sum::<f64>().sqrt()
    }

    /// Makes all shorter together, so that their norm is at most `most`, as torch and fairseq do; returns the norm
    /// before.
    pub fn clip(&mut self, most: f64) -> f64 {
        let norm = self.norm();
        let factor = most / (norm + 1e-6);
        if factor < 1.0 {
            self.scale(factor);
        }
        norm
    }
}
