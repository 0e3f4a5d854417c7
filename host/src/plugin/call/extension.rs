//! What the host can do beyond node.h's first functions: `kg_context.extension`.

use super::*;
use kosmograph_abi::table::HOST_FUNCTIONS;

// SAFETY of the functions below: as of those of the parent.

/// What the host can do beyond node.h's first functions.
pub(super) unsafe extern "C" fn extension(
    context: *const abi::Context,
    name: abi::Str,
) -> *const abi::Interface {
    static PREVIEW: abi::Interface = abi::Interface {
        size: size_of::<abi::Interface>() as u32,
        reserved: 0,
        call: preview,
        flags: 0,
    };
    // SAFETY: see above.
    let (Some(frame), Ok(name)) = (unsafe { (frame(context), text_bytes(name)) }) else {
        return std::ptr::null();
    };
    let is_wanted =
        name == b"preview/1" && frame.with("extension", false, |call| call.wants_previews());
    if is_wanted { &raw const PREVIEW } else { std::ptr::null() }
}

/// "preview/1".
unsafe extern "C" fn preview(
    _: *mut abi::Object,
    context: *const abi::Context,
    input: *const abi::Map,
    output: *mut *mut abi::Map,
) -> abi::Status {
    // SAFETY: see above.
    let Some(frame) = (unsafe { frame(context) }) else { return abi::ERROR };
    let refused = |why: String| {
        let why = format!("\"preview/1\": {why}");
        frame.notes().failure = Some((String::new(), why));
        abi::ERROR
    };
    if input.is_null() || output.is_null() {
        return refused("there is no map to read, or to give".to_owned());
    }
    // SAFETY: node.h: a map, borrowed for the call; looked at before it is believed.
    let values = match unsafe { Value::borrow_map(input) } {
        Ok(values) => values,
        Err(malformed) => return refused(format!("the value {malformed}")),
    };
    let fits = conform::map(&values, HOST_FUNCTIONS[0].input, &mut Axes::default());
    if let Err(misfit) = fits {
        return refused(misfit.to_string());
    }
    let painted = frame.with("preview", Ok(()), |call| {
        call.preview(Preview::paint(&values)?);
        Ok(())
    });
    match painted {
        Ok(()) => {
            // SAFETY: node.h: where the map is written.
            unsafe { output.write(Value::empty_map().into_raw().payload.map) };
            abi::OK
        }
        Err(why) => refused(why),
    }
}
