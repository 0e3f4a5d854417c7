//! Whether the values of a call are what the table of the boundary says of it: kinds, keys that must be
//! there, shapes, and axes of one name that must be equal.

use kosmograph_abi as abi;
use kosmograph_abi::table::{Interface, Of, Part};

use crate::{TensorView, Value};

/// What the names of axes stood for so far, in one call: in what goes in, then in what comes out.
#[derive(Clone, Debug, Default)]
pub struct Axes(Vec<(&'static str, i64)>);

/// A value that is not what the table says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Misfit {
    /// Where, from the key of the call inwards: `extra_tokens[1].mask`.
    pub place: String,
    /// What is wrong, as a sentence about the value.
    pub what: String,
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{}\": {}", self.place, self.what)
    }
}

impl std::error::Error for Misfit {}

/// Holds the map of a call against `parts`. Keys that the table does not have are passed over.
///
/// # Errors
/// The first value that does not fit.
pub fn map(map: &Value, parts: &[Part], axes: &mut Axes) -> Result<(), Misfit> {
    fits_map(map, parts, axes, "")
}

/// Holds the map that came out of a call against its `row` of the table.
///
/// # Errors
/// As for [`map`].
pub fn answer(row: &Interface, input: &Value, output: &Value) -> Result<(), Misfit> {
    let mut axes = Axes::default();
    // Whether what went in fits is the callee's to say; here it only names the axes.
    let _ = map(input, row.input, &mut axes);
    map(output, row.output, &mut axes)
}

/// Holds one value against what it should be.
///
/// # Errors
/// What does not fit.
pub fn value(value: &Value, of: Of, axes: &mut Axes, name: &str) -> Result<(), Misfit> {
    fits(value, of, axes, name)
}

fn misfit(place: &str, what: impl Into<String>) -> Misfit {
    Misfit { place: place.to_owned(), what: what.into() }
}

fn fits_map(map: &Value, parts: &[Part], axes: &mut Axes, place: &str) -> Result<(), Misfit> {
    for part in parts {
        let place = match place {
            "" => part.name.to_owned(),
            place => format!("{place}.{}", part.name),
        };
        // Nothing in a key is as good as no key.
        match map.get(part.name).filter(|value| !value.is_none()) {
            Some(value) => fits(value, part.of, axes, &place)?,
            None if part.optional => (),
            None => return Err(misfit(&place, format!("{} is missing", wanted(part.of)))),
        }
    }
    Ok(())
}

fn fits(value: &Value, of: Of, axes: &mut Axes, place: &str) -> Result<(), Misfit> {
    let given = value.kind();
    // Whoever wants a number takes an integer: a map that was made by hand says 1 for 1.0.
    let is_number = of == Of::Float && given == abi::INT;
    let is_kind = of.kind().is_none_or(|kind| kind == given) || is_number;
    if !is_kind {
        let given = value.kind_name();
        return Err(misfit(place, format!("{} is wanted, but {given} was given", wanted(of))));
    }
    match of {
        Of::Any | Of::Bool | Of::Int | Of::Float | Of::Text => Ok(()),
        Of::Tensor(shapes) => match value.as_tensor() {
            Some(view) => tensor(view, shapes, axes, place),
            None => Ok(()),
        },
        Of::List(item) => {
            for (i, value) in value.items().iter().enumerate() {
                // Axes of a name are equal in the whole call; those of a list's items in each.
                fits(value, *item, &mut axes.clone(), &format!("{place}[{i}]"))?;
            }
            Ok(())
        }
        Of::Map(parts) => fits_map(value, parts, axes, place),
        Of::Named(item) => {
            for (name, value) in value.pairs() {
                fits(value, *item, &mut axes.clone(), &format!("{place}.{name}"))?;
            }
            Ok(())
        }
        Of::Object(types) => {
            let given = value.object_type().unwrap_or_default();
            match types.is_empty() || types.contains(&given) {
                true => Ok(()),
                false => {
                    let what = format!("{} is wanted, but a {given} was given", wanted(of));
                    Err(misfit(place, what))
                }
            }
        }
    }
}

fn tensor(
    tensor: TensorView<'_>,
    shapes: &[&'static str],
    axes: &mut Axes,
    place: &str,
) -> Result<(), Misfit> {
    let shape = tensor.shape();
    let abi::DLDataType { code, bits, lanes } = tensor.dtype();
    if (code, bits, lanes) != (abi::DLDataType::F32.code, 32, 1) {
        let what = format!("f32 is wanted, but the tensor has {bits} bits of DLPack's code {code}");
        return Err(misfit(place, what));
    }
    if shapes.is_empty() {
        return Ok(());
    }
    let wrong =
        || misfit(place, format!("a tensor {} is wanted, but its shape is {shape:?}", all(shapes)));
    let names = |pattern: &'static str| pattern.split(',');
    let of_rank = |pattern: &&&'static str| names(pattern).count() == shape.len();
    let mut conflict = None;
    for pattern in shapes.iter().filter(of_rank) {
        let mut tried = axes.clone();
        match names(pattern).zip(shape).try_for_each(|(name, &size)| tried.bind(name, size)) {
            Ok(()) => {
                *axes = tried;
                return Ok(());
            }
            Err(what) => conflict = conflict.or(what),
        }
    }
    match conflict {
        Some((name, before, size)) => Err(misfit(
            place,
            format!(
                "its shape is {shape:?}, so {name} of {} is {size}, but it is {before} elsewhere in \
                 the call",
                all(shapes)
            ),
        )),
        None => Err(wrong()),
    }
}

impl Axes {
    /// Takes an axis of `size` for `name`. The error has the name's other size, where that is why.
    fn bind(
        &mut self,
        name: &'static str,
        size: i64,
    ) -> Result<(), Option<(&'static str, i64, i64)>> {
        let digits = name.bytes().take_while(u8::is_ascii_digit).count();
        let (factor, name) = name.split_at(digits);
        let factor = factor.parse::<i64>().ok();
        let size = match (factor, name) {
            (None, "*") => return Ok(()),
            (Some(number), "") => return if number == size { Ok(()) } else { Err(None) },
            (Some(factor), _) if size % factor == 0 => size / factor,
            (Some(_), _) => return Err(None),
            (None, _) => size,
        };
        match self.0.iter().find(|(known, _)| *known == name) {
            Some(&(_, known)) if known != size => Err(Some((name, known, size))),
            Some(_) => Ok(()),
            None => {
                self.0.push((name, size));
                Ok(())
            }
        }
    }
}

fn all(shapes: &[&str]) -> String {
    let shapes: Vec<String> = shapes.iter().map(|shape| format!("[{shape}]")).collect();
    shapes.join(" or ")
}

/// What is wanted, with its article.
fn wanted(of: Of) -> String {
    match of {
        Of::Any => "a value".to_owned(),
        Of::Tensor([]) => "a tensor".to_owned(),
        Of::Tensor(shapes) => format!("a tensor {}", all(shapes)),
        Of::List(Of::Tensor(_)) => "a list of tensors".to_owned(),
        Of::List(Of::Text) => "a list of strings".to_owned(),
        Of::Object([]) => "an object".to_owned(),
        Of::Object(types) => format!("a {}", types.join(" or ")),
        Of::Map(_) | Of::Named(_) => "a map".to_owned(),
        Of::List(_) => "a list".to_owned(),
        Of::Bool => "a boolean".to_owned(),
        Of::Int => "an integer".to_owned(),
        Of::Float => "a number".to_owned(),
        Of::Text => "text".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(pattern: &'static str, shape: &[i64], axes: &mut Axes) -> bool {
        pattern.split(',').zip(shape).all(|(name, &size)| axes.bind(name, size).is_ok())
    }

    #[test]
    fn axes_of_one_name_are_equal() {
        let mut axes = Axes::default();
        assert!(bound("B,C,H,W", &[2, 4, 8, 16], &mut axes));
        assert!(bound("B", &[2], &mut axes));
        assert!(!bound("B", &[3], &mut axes));
        assert!(bound("B,3,8H,8W", &[2, 3, 64, 128], &mut axes));
        assert!(!bound("B,3,8H,8W", &[2, 3, 65, 128], &mut axes));
        assert!(!bound("B,3", &[2, 4], &mut axes));
        assert!(bound("*,*", &[9, 7], &mut axes));
        assert_eq!(axes.bind("B", 5), Err(Some(("B", 2, 5))));
    }

    #[test]
    fn every_row_of_the_table_has_shapes_that_can_be_read() {
        fn walk(of: Of) {
            match of {
                Of::Tensor(shapes) => {
                    for axis in shapes.iter().flat_map(|shape| shape.split(',')) {
                        let digits = axis.bytes().take_while(u8::is_ascii_digit).count();
                        let name = &axis[digits..];
                        assert!(!axis.is_empty() && name.len() <= 1, "{axis:?}");
                        assert!(
                            name.is_empty()
                                || name == "*" && digits == 0
                                || name.as_bytes()[0].is_ascii_alphabetic()
                        );
                    }
                }
                Of::List(item) | Of::Named(item) => walk(*item),
                Of::Map(parts) => parts.iter().for_each(|part| walk(part.of)),
                _ => (),
            }
        }
        use kosmograph_abi::table::{EXTENSIONS, INTERFACES, SOCKETS};
        SOCKETS.iter().for_each(|socket| walk(socket.of));
        for row in INTERFACES.iter().chain(EXTENSIONS) {
            row.input.iter().chain(row.output).for_each(|part| walk(part.of));
            assert!(
                row.types.is_empty() || row.required.iter().all(|name| row.types.contains(name))
            );
        }
    }
}
