//! Conditionings put together: side by side, mixed, one behind the other, emptied. They take any encoder's,
//! so that CLIP's and Kosmos-G's go together in one picture.

use node::*;

/// Two conditionings side by side: each is asked for the whole picture, and their predictions are averaged.
#[derive(Inputs)]
#[node(category = "conditioning")]
pub struct ConditioningCombine {
    /// One.
    conditioning_1: Conditioning,
    /// The other.
    conditioning_2: Conditioning,
}

impl Node for ConditioningCombine {
    outputs![CONDITIONING: Conditioning];

    fn run(self, _cx: &Context) -> Result<Conditioning> {
        let mut entries = self.conditioning_1.entries();
        entries.extend(self.conditioning_2.entries());
        Ok(Conditioning(Value::list(entries)))
    }
}

/// A mix of two conditionings, number by number.
#[derive(Inputs)]
#[node(category = "conditioning")]
pub struct ConditioningAverage {
    /// What is had at strength 1.
    conditioning_to: Conditioning,
    /// What is had at strength 0; its first entry.
    conditioning_from: Conditioning,
    /// How much of `conditioning_to` is in the mix.
    #[widget(default = 1.0, min = 0.0, max = 1.0, step = 0.01)]
    conditioning_to_strength: f64,
}

impl Node for ConditioningAverage {
    outputs![CONDITIONING: Conditioning];
    /// ComfyUI's first versions had a space behind the name.
    const REPLACES: &'static [Replaces] = &[Replaces {
        widgets: &["conditioning_to_strength"],
        ..Replaces::named("ConditioningAverage ")
    }];

    fn run(self, cx: &Context) -> Result<Conditioning> {
        let from = first(cx, &self.conditioning_from)?;
        let from_pooled = pooled(&from.entry)?;
        let to_strength = self.conditioning_to_strength as f32;
        let mix = |to: &[f32], from: &[f32]| -> Vec<f32> {
            let mixed = |(t, f): (&f32, &f32)| t * to_strength + f * (1.0 - to_strength);
            to.iter().zip(from).map(mixed).collect()
        };
        let contexts = self.conditioning_to.contexts();
        let contexts = contexts.map_err(|error| error.of_input("conditioning_to"))?;
        let mut averaged = Vec::new();
        for (entry, to) in self.conditioning_to.entries().iter().zip(contexts) {
            from.check_width(&to)?;
            let shape = to.shape();
            // The shorter one is filled up with zeros, the longer one cut.
            let wanted: usize = shape.iter().product();
            memory::ask("the mixed conditionings", &[2, wanted], size_of::<f32>())?;
            let mut fitted = from.context.to_vec()?;
            if shape[0] != 1 {
                return Err(Error::at(
                    "conditioning_to",
                    format!("a conditioning of {} rows is given; one row would be right", shape[0]),
                ));
            }
            fitted.resize(wanted, 0.0);
            let context = Tensor::from_f32(&shape, mix(&to.to_f32()?, &fitted))?;
            let mut entry = entry.with("context", context.into_value());
            if let Some(from) = &from_pooled {
                let to = pooled(&entry)?.unwrap_or_else(|| from.clone());
                if to.shape() != from.shape() {
                    return Err(Error::at(
                        "conditioning_from",
                        format!(
                            "its pooled vector is {:?}, that of conditioning_to {:?}",
                            from.shape(),
                            to.shape()
                        ),
                    ));
                }
                let mixed = Tensor::from_f32(&to.shape(), mix(&to.to_f32()?, &from.to_f32()?))?;
                entry = entry.with("pooled", mixed.into_value());
            }
            averaged.push(entry);
        }
        Ok(Conditioning(Value::list(averaged)))
    }
}

/// One conditioning behind the other, as one long prompt.
#[derive(Inputs)]
#[node(category = "conditioning")]
pub struct ConditioningConcat {
    /// What comes first.
    conditioning_to: Conditioning,
    /// What is put behind it; its first entry.
    conditioning_from: Conditioning,
}

impl Node for ConditioningConcat {
    outputs![CONDITIONING: Conditioning];

    fn run(self, cx: &Context) -> Result<Conditioning> {
        let from = first(cx, &self.conditioning_from)?;
        let contexts = self.conditioning_to.contexts();
        let contexts = contexts.map_err(|error| error.of_input("conditioning_to"))?;
        let mut joined = Vec::new();
        for (entry, to) in self.conditioning_to.entries().iter().zip(contexts) {
            from.check_width(&to)?;
            let shape = to.shape();
            if shape[0] != 1 {
                return Err(Error::at(
                    "conditioning_to",
                    format!("a conditioning of {} rows is given; one row would be right", shape[0]),
                ));
            }
            let tokens = shape[1] + from.context.shape()[1];
            let shape = [1, tokens, shape[2]];
            let mut values = memory::room("the joined conditionings", &shape)?;
            values.extend_from_slice(&to.to_f32()?);
            values.extend_from_slice(&from.context.to_f32()?);
            let context = Tensor::from_f32(&shape, values)?;
            joined.push(entry.with("context", context.into_value()));
        }
        Ok(Conditioning(Value::list(joined)))
    }
}

/// A conditioning of zeros: a negative that says nothing, not even what an empty text says.
#[derive(Inputs)]
#[node(category = "conditioning")]
pub struct ConditioningZeroOut {
    /// What is emptied.
    conditioning: Conditioning,
}

impl Node for ConditioningZeroOut {
    outputs![CONDITIONING: Conditioning];

    fn run(self, _cx: &Context) -> Result<Conditioning> {
        let contexts = self.conditioning.contexts();
        let contexts = contexts.map_err(|error| error.of_input("conditioning"))?;
        let mut emptied = Vec::new();
        for (entry, context) in self.conditioning.entries().iter().zip(contexts) {
            let mut entry = entry.with("context", zeros(&context)?.into_value());
            if let Some(pooled) = pooled(&entry)? {
                entry = entry.with("pooled", zeros(&pooled)?.into_value());
            }
            emptied.push(entry);
        }
        Ok(Conditioning(Value::list(emptied)))
    }
}

/// The entry that a whole conditioning is mixed with.
struct From {
    entry: Value,
    /// [1, T, D].
    context: Tensor,
}

/// The first entry of `conditioning_from`.
fn first(cx: &Context, conditioning: &Conditioning) -> Result<From> {
    let input = "conditioning_from";
    let contexts = conditioning.contexts().map_err(|error| error.of_input(input))?;
    let mut entries = conditioning.entries();
    if entries.len() > 1 {
        let count = entries.len();
        cx.warn(format!("conditioning_from has {count} entries; the first alone is used"));
    }
    let (Some(context), false) = (contexts.into_iter().next(), entries.is_empty()) else {
        return Err(Error::at(input, "the conditioning has no entry"));
    };
    let shape = context.shape();
    if shape[0] != 1 {
        return Err(Error::at(
            input,
            format!("a conditioning of {} rows is given; one row would be right", shape[0]),
        ));
    }
    Ok(From { entry: entries.swap_remove(0), context })
}

impl From {
    fn check_width(&self, to: &Tensor) -> Result<()> {
        let (from, to) = (self.context.shape()[2], to.shape()[2]);
        if from == to {
            return Ok(());
        }
        Err(Error::at(
            "conditioning_from",
            format!(
                "the conditioning is {from} numbers wide, conditioning_to {to}: they were made for \
                 different families of models and cannot be mixed"
            ),
        ))
    }
}

/// [1, D].
fn pooled(entry: &Value) -> Result<Option<Tensor>> {
    match entry.get("pooled") {
        None => Ok(None),
        Some(value) if value.is_none() => Ok(None),
        Some(value) => match value.as_tensor() {
            Some(tensor) => Ok(Some(tensor)),
            None => Err(Error::new(format!("\"pooled\" should be a tensor, but it is {value:?}"))),
        },
    }
}

fn zeros(tensor: &Tensor) -> Result<Tensor> {
    let shape = tensor.shape();
    Tensor::from_f32(&shape, memory::filled("the conditionings", &shape, 0.0)?)
}
