//! The boxes of a sampling that say what is where: patches of the model where an entry that has them counts.

use node::*;

/// All of a sampling, each once, however many entries of the conditionings name it.
#[derive(Default)]
pub struct Groundings {
    values: Vec<Value>,
}

impl Groundings {
    /// The place of what an entry's "grounding" names.
    pub fn of_entry(&mut self, entry: &Value) -> Option<usize> {
        let value = entry.get("grounding")?;
        let known = self.values.iter().position(|known| known.is_same(&value));
        Some(known.unwrap_or_else(|| {
            self.values.push(value);
            self.values.len() - 1
        }))
    }

    /// The model with the patches of each.
    ///
    /// # Errors
    /// A GLIGEN that is none, or one that is made for another family than the model.
    pub fn models(&self, cx: &Context<'_>, model: &Object) -> Result<Vec<Object>> {
        let grounded = |value: &Value| {
            let gligen =
                <Gligen as Socket>::from_value(value.get("gligen").unwrap_or(Value::NONE))?;
            let patches = gligen.0.ground(cx, value.get("boxes").unwrap_or(Value::NONE))?;
            if !model.offers("patch/1") {
                return Err(Error::new(
                    "this model does not take patches, by which GLIGEN acts: its library does not offer \"patch/1\"",
                ));
            }
            model.with_patches(cx, patches)
        };
        self.values
            .iter()
            .map(|value| grounded(value).map_err(|error| error.of_input("model")))
            .collect()
    }
}
