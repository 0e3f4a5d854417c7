//! A node library seen through its exported symbol, as a host sees it.

use std::ffi::c_void;

use node::abi;
use node::testing::{Host, this_library};
use node::*;
use proptest::prelude::*;

/// Adds a number to every pixel.
///
/// A second paragraph.
#[derive(Inputs)]
#[node(class = "Add", category = "test", impure)]
struct AddNode {
    /// The picture.
    image: Image,
    #[widget(default = 0.5, min = 0.0, max = 1.0, step = 0.1)]
    amount: f64,
    #[widget(default = 3, min = 1, max = 9)]
    times: i64,
    #[widget(seed)]
    seed: u64,
    #[widget(choices = ["one", "two"], default = "one")]
    mode: String,
    extra: Numbered<Image, 2>,
}

impl Node for AddNode {
    outputs![image: Image, mask: Mask];

    fn run(self, cx: &Context) -> Result<(Image, Mask)> {
        for step in cx.steps(self.times as usize) {
            step?;
        }
        if self.mode == "two" {
            panic!("two is one too many");
        }
        let pixels: Vec<f32> =
            self.image.0.to_f32()?.iter().map(|x| x + self.amount as f32).collect();
        let (b, h, w, _) = self.image.dims();
        let extras = self.extra.0.iter().flatten().count() as f32;
        let mask = Tensor::from_f32(&[b, h, w], vec![extras + self.seed as f32; b * h * w])?;
        Ok((Image(Tensor::from_f32(&self.image.0.shape(), pixels)?), Mask(mask)))
    }
}

/// Hands out an object.
#[derive(Inputs)]
struct MakeDoubler {}

impl Node for MakeDoubler {
    outputs![MODEL: Model];

    fn run(self, _cx: &Context) -> Result<Model> {
        Ok(Model(Object::new(Doubler)))
    }
}

struct Doubler;

impl Export for Doubler {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Doubler: interface::marker::Denoiser];
}

impl interface::Denoise for Doubler {
    fn denoise(
        &self,
        _cx: &Context,
        x: &Tensor,
        timestep: &Tensor,
        _context: &Tensor,
        residuals: &[Tensor],
    ) -> Result<Tensor> {
        if timestep.to_f32()?[0] < 0.0 {
            fail!("the timestep is negative");
        }
        let added = residuals.len() as f32;
        let doubled = x.to_f32()?.iter().map(|x| 2.0 * x + added).collect();
        Tensor::from_f32(&x.shape(), doubled)
    }
}

/// Takes a prompt.
#[derive(Inputs)]
struct Words {
    #[widget(multiline, mentions = "embeddings")]
    text: String,
}

impl Node for Words {
    outputs![mask: Mask];

    fn run(self, cx: &Context) -> Result<Mask> {
        fail!("its file is {:?}", cx.file("embeddings", &self.text));
    }
}

/// Works where no context reaches.
#[derive(Inputs)]
#[node(memory = [4, size, size])]
struct Deep {
    #[widget(default = 1, min = 1, max = 9)]
    size: i64,
}

impl Node for Deep {
    outputs![mask: Mask];

    fn run(self, _cx: &Context) -> Result<Mask> {
        if self.size == 9 {
            let kernel = std::thread::spawn(|| panic!("the kernel said this\n   0: a_frame\n"));
            std::panic::resume_unwind(kernel.join().unwrap_err());
        }
        // An error that passed through others' hands.
        node::interrupt::check().map_err(|stop| Error::new(format!("in the middle: {stop}")))?;
        Ok(Mask(Tensor::from_f32(&[1, 1, 1], vec![1.0])?))
    }
}

/// Converts files whose names end in .old, to nothing.
struct Renamer;

impl Convert for Renamer {
    fn convert(
        cx: &Context<'_>,
        input: &std::path::Path,
        output: &std::path::Path,
        options: &serde_json::Value,
    ) -> Result<Option<serde_json::Value>> {
        if input.extension().is_none_or(|extension| extension != "old") {
            return Ok(None);
        }
        cx.progress(1, 1)?;
        Ok(Some(json!({"kind": options["tokenizer"], "output": output})))
    }
}

fn prepare() -> Option<String> {
    Some("there is one thread".to_owned())
}

node::library![AddNode, MakeDoubler, Words, Deep; prepare: prepare; convert: Renamer];

/// Runs the node "Add".
fn add(host: &Host, inputs: &[Value]) -> Result<Vec<Value>> {
    host.call(&this_library!(), 0, inputs, 2)
}

/// What went wrong, and with which input.
fn failed(result: Result<Vec<Value>>) -> (String, String) {
    match result {
        Err(Error::Failed { input, sentence }) => (input.unwrap_or_default(), sentence),
        other => panic!("{other:?} is no failure"),
    }
}

fn picture() -> Value {
    Tensor::from_f32(&[1, 2, 2, 3], vec![0.25; 12]).unwrap().into_value()
}

fn inputs() -> Vec<Value> {
    let (seed, mode) = (Value::from(7u64), Value::string("one"));
    vec![picture(), 0.5.into(), 3i64.into(), seed, mode, picture(), Value::NONE]
}

#[test]
fn the_descriptor_says_what_the_struct_says() {
    let library = this_library!();
    let json = library.descriptor();
    assert_eq!(json["name"], "kosmograph-sdk");
    let add = &json["nodes"][0];
    assert_eq!(add["class"], "Add");
    assert_eq!(add["doc"], "Adds a number to every pixel.\nA second paragraph.");
    assert_eq!((&add["pure"], &add["output_node"]), (&json!(false), &json!(false)));
    assert_eq!(add["inputs"][0], json!({"name": "image", "type": "IMAGE", "doc": "The picture."}));
    assert_eq!(
        add["inputs"][1],
        json!({"name": "amount", "type": "FLOAT", "default": 0.5, "min": 0.0, "max": 1.0, "step": 0.1})
    );
    assert_eq!(
        add["inputs"][3],
        json!({"name": "seed", "type": "INT", "role": "seed", "min": 0, "max": u64::MAX})
    );
    assert_eq!(add["inputs"][4]["type"], "COMBO");
    assert_eq!(add["inputs"][6], json!({"name": "extra_2", "type": "IMAGE", "optional": true}));
    assert_eq!(add["outputs"][1], json!({"name": "mask", "type": "MASK"}));
    assert_eq!(json["nodes"][3]["memory"], json!([4.0, "size", "size"]));
    assert_eq!(add.get("memory"), None);
    let text = &json["nodes"][2]["inputs"][0];
    assert_eq!((&text["multiline"], &text["mentions"]), (&json!(true), &json!("embeddings")));
}

#[test]
fn a_node_runs() {
    let host = Host::new();
    let outputs = add(&host, &inputs()).unwrap();
    assert_eq!(outputs[0].as_tensor().unwrap().to_f32().unwrap(), [0.75; 12].as_slice());
    assert_eq!(outputs[1].as_tensor().unwrap().to_f32().unwrap(), [8.0; 4].as_slice());
    assert_eq!(host.progress(), [(0, 3), (1, 3), (2, 3), (3, 3)]);
}

#[test]
fn a_node_runs_by_its_name_with_its_defaults() {
    let (host, library) = (Host::new(), this_library!());
    let given = [("image", picture()), ("seed", 7u64.into())];
    let outputs = host.run(&library, "Add", &given).unwrap();
    assert_eq!(outputs[0].as_tensor().unwrap().to_f32().unwrap(), [0.75; 12].as_slice());
    assert_eq!(outputs[1].as_tensor().unwrap().to_f32().unwrap(), [7.0; 4].as_slice());
    assert_eq!(host.progress().len(), 4);
    let unknown = std::panic::catch_unwind(|| host.run(&library, "Add", &[("picture", picture())]));
    assert!(unknown.is_err());
}

#[test]
fn a_mentioned_file_is_asked_for_by_its_name() {
    let host = Host::new().with("file:embeddings/moody", "/embeddings/moody.pt");
    let said = |text: &str| {
        failed(host.run(&this_library!(), "Words", &[("text", Value::string(text))])).1
    };
    assert_eq!(said("moody"), "its file is Some(\"/embeddings/moody.pt\")");
    assert_eq!(said("bright"), "its file is None");
}

#[test]
fn a_wish_to_stop_ends_the_node() {
    let host = Host::new().stop_at(1);
    assert!(matches!(add(&host, &inputs()), Err(Error::Cancelled)));
    assert_eq!(host.progress().len(), 2);
}

/// Runs the node "Deep".
fn deep(host: &Host, size: i64) -> Result<Vec<Value>> {
    host.run(&this_library!(), "Deep", &[("size", size.into())])
}

#[test]
fn work_that_has_no_context_stops_too() {
    deep(&Host::new(), 2).unwrap();
    let host = Host::new().stop_at(0);
    assert!(matches!(deep(&host, 2), Err(Error::Cancelled)));
    assert!(host.failure().is_none());
    assert_eq!(host.progress(), [(0, 0)], "asked, and nothing to show");
}

#[test]
fn what_another_thread_said_is_the_nodes_error_without_its_backtrace() {
    let (_, what) = failed(deep(&Host::new(), 9));
    assert!(what.contains("library.rs:") && what.contains(": the kernel said this"), "{what}");
    assert!(!what.contains("a_frame"), "{what}");
}

#[test]
fn a_library_is_prepared_once() {
    let told: Vec<String> = (0..3)
        .flat_map(|_| {
            let host = Host::new();
            deep(&host, 2).unwrap();
            host.logs()
        })
        .collect();
    // Another test may have been the first to call.
    assert!(told.len() <= 1 && told.iter().all(|told| told == "there is one thread"), "{told:?}");
}

#[test]
fn wrong_inputs_are_named() {
    let cases: [(usize, Value, &str, &str); 7] = [
        (0, Value::NONE, "image", "IMAGE is missing"),
        (0, 1i64.into(), "image", "an integer was given"),
        (1, 1.5.into(), "amount", "1.5 is outside its range, 0 to 1"),
        (1, f64::NAN.into(), "amount", "NaN is outside"),
        (2, 10i64.into(), "times", "10 is outside its range, 1 to 9"),
        (4, Value::string("three"), "mode", "\"three\" is not one of: one, two"),
        (5, Value::string("x"), "extra_1", "a string was given"),
    ];
    for (i, value, input, sentence) in cases {
        let mut inputs = inputs();
        inputs[i] = value;
        let (at, what) = failed(add(&Host::new(), &inputs));
        assert_eq!(at, input);
        assert!(what.contains(sentence), "{what}");
    }
}

#[test]
fn wrong_counts_and_nodes_are_errors() {
    let (host, library) = (Host::new(), this_library!());
    failed(host.call(&library, 0, &inputs()[1..], 2));
    failed(host.call(&library, 0, &inputs(), 1));
    assert!(failed(host.call(&library, 9, &[], 0)).1.contains("there is no node 9"));
}

#[test]
fn who_calls_with_what_is_no_value_is_told_so() {
    let library = kosmograph_library::kosmograph_library_v1();
    let told = |call: &dyn Fn(*const abi::Context) -> abi::Status| {
        let host = Host::new();
        assert_eq!(call(host.context().as_raw()), abi::ERROR);
        host.failure().unwrap().1
    };
    let ends = "; whoever calls breaks the boundary's rules";
    let mut outputs = [abi::Value::NONE; 2];
    let room = outputs.as_mut_ptr();
    // SAFETY: the library's own function, with what it must see through, here and below.
    let nowhere = told(&|cx| unsafe { ((*library).run)(0, cx, std::ptr::null(), 7, room, 2) });
    assert_eq!(nowhere, format!("7 values were given, but not where they are{ends}"));
    let null = abi::Value { kind: abi::TENSOR, ..abi::Value::NONE };
    let values = [null; 7];
    let nothing = told(&|cx| unsafe { ((*library).run)(0, cx, values.as_ptr(), 7, room, 2) });
    assert_eq!(nothing, format!("value 0 is a tensor at NULL{ends}"));

    let model = Object::new(Doubler).into_value();
    let x = Value::string("a text, and no tensor");
    let alias = abi::Value { kind: abi::TENSOR, ..*x.as_raw() };
    let keys = [abi::Str::new("x"), abi::Str::new("x")];
    let items = [*x.as_raw(), alias];
    unsafe extern "C" fn count(_: *mut abi::Counted) {}
    let size = size_of::<abi::Map>() as u32;
    let base = || abi::Counted { size, reserved: 0, retain: count, release: count };
    for (keys, count, fault) in [
        (&keys[..], 2, "is a map with the key \"x\" twice"),
        (
            &[keys[0], abi::Str::new("y")],
            2,
            "is a map whose \"y\" is a tensor at the address of a string",
        ),
        (&keys[..1], usize::MAX, "is a map of 18446744073709551615 keys, more than memory holds"),
    ] {
        let map = abi::Map { base: base(), keys: keys.as_ptr(), values: items.as_ptr(), count };
        let mut output = std::ptr::null_mut();
        let call = |cx, output| unsafe {
            let object = model.as_raw().payload.object;
            let interface = ((*object).query)(object, abi::Str::new("denoiser/1"));
            ((*interface).call)(object, cx, &raw const map, output)
        };
        let output = &raw mut output;
        let said = told(&|cx| call(cx, output));
        assert_eq!(said, format!("denoiser/1 was called with a value that {fault}{ends}"));
    }
}

#[test]
fn a_panic_is_an_error_that_says_where() {
    let mut inputs = inputs();
    inputs[4] = Value::string("two");
    let (_, what) = failed(add(&Host::new(), &inputs));
    assert!(what.contains("two is one too many") && what.contains("library.rs"), "{what}");
}

#[test]
fn an_object_is_called_through_its_interface() {
    let host = Host::new();
    let outputs = host.run(&this_library!(), "MakeDoubler", &[]).unwrap();
    let model = outputs[0].as_object().unwrap();
    let cx = host.context();
    let tensor = |shape: &[usize], value| Tensor::from_f32(shape, vec![value; 2]).unwrap();
    let (x, context) = (tensor(&[2, 1, 1, 1], 3.0), tensor(&[2, 1, 1], 0.0));
    let call = |t| {
        let (x, residual) = (x.clone(), tensor(&[2], 0.0));
        model.denoise(&cx, x, tensor(&[2], t), context.clone(), vec![residual])
    };
    assert_eq!(call(1.0).unwrap().to_f32().unwrap(), [7.0; 2].as_slice());
    assert_eq!(call(-1.0).unwrap_err().to_string(), "the timestep is negative");
    let error = model.decode(&cx, x.clone()).unwrap_err();
    assert!(error.to_string().contains("does not offer \"vae_decode/1\""), "{error}");
    let refused = |input, told: &str| {
        let error = model.call::<1>(&cx, "denoiser/1", [("x", input)]).unwrap_err().to_string();
        assert!(error.contains(told), "{error}");
    };
    refused(Value::NONE, "a tensor [B,C,H,W] is missing");
    refused(Value::from(1i64), "a tensor [B,C,H,W] is wanted, but an integer was given");
    refused(tensor(&[2], 0.0).into_value(), "a tensor [B,C,H,W] is wanted, but its shape is [2]");
    refused(x.clone().into_value(), "a tensor [B] is missing");
    let error = model.denoise(&cx, x.clone(), tensor(&[1, 2], 0.0), context.clone(), vec![]);
    assert!(error.unwrap_err().to_string().contains("a tensor [B] is wanted"));
    let one = Tensor::from_f32(&[1], vec![0.0]).unwrap();
    let error = model.denoise(&cx, x.clone(), one, context.clone(), vec![]).unwrap_err();
    let told = "its shape is [1], so B of [B] is 1, but it is 2 elsewhere in the call";
    assert!(error.to_string().contains(told), "{error}");
    // What it does not know is passed over.
    let known = [("x", x), ("timestep", tensor(&[2], 1.0)), ("context", context)];
    let known = known.map(|(name, tensor)| (name, tensor.into_value()));
    let [x, timestep, context] = known;
    let input = [x, timestep, context, ("of_tomorrow", Value::from(1i64))];
    assert!(model.call(&cx, "denoiser/1", input).is_ok());
    assert!(model.local::<Doubler>().is_some());
}

#[test]
fn a_preview_is_seen_by_who_looks() {
    let image = |channels| Tensor::from_f32(&[1, 1, 2, channels], vec![0.5; 2 * channels]).unwrap();
    let host = Host::new().wants_previews();
    host.context().preview(1, 2, Preview::Image(image(3))).unwrap();
    let [seen] = &host.previews()[..] else { panic!("one preview was shown") };
    assert_eq!(seen.get("step").and_then(|step| step.as_i64()), Some(1));
    assert!(host.context().preview(1, 2, Preview::Image(image(4))).is_err());
    assert!(host.failure().unwrap().1.contains("its shape is [1, 1, 2, 4]"));
    let host = Host::new();
    assert!(!host.context().wants_previews());
    host.context().preview(1, 2, Preview::Image(image(3))).unwrap();
    assert!(host.previews().is_empty());
}

#[test]
fn the_panic_extension_is_contained() {
    let library = kosmograph_library::kosmograph_library_v1();
    let host = Host::new();
    // SAFETY: the table obeys node.h.
    let status = unsafe {
        let extension = (*library).extension.unwrap();
        let panic: *const c_void = extension(abi::Str::new("panic/1"));
        let none = std::ptr::null_mut();
        let call = (*panic.cast::<abi::Interface>()).call;
        call(none, host.context().as_raw(), std::ptr::null(), std::ptr::null_mut())
    };
    assert_eq!(status, abi::ERROR);
    assert!(host.failure().unwrap().1.contains("as the conformance test asked"));
}

#[test]
fn the_convert_extension_answers_as_node_h_says() {
    let library = kosmograph_library::kosmograph_library_v1();
    let convert = |host: &Host, inputs: &[&str]| {
        let names = ["input", "output", "options"];
        let texts = inputs.iter().map(|text| Value::string(*text));
        let input = Value::map(names.into_iter().zip(texts));
        let mut output = std::ptr::null_mut();
        // SAFETY: the table obeys node.h, and so do these arguments.
        unsafe {
            let extension = (*library).extension.unwrap();
            let interface: *const c_void = extension(abi::Str::new("convert/1"));
            let call = (*interface.cast::<abi::Interface>()).call;
            let (none, context) = (std::ptr::null_mut(), host.context().as_raw());
            let status = call(none, context, input.as_raw().payload.map, &mut output);
            let payload = abi::Payload { map: output };
            let raw = abi::Value { kind: abi::MAP, reserved: 0, payload };
            let made =
                (!output.is_null()).then(|| Value::adopt(raw).unwrap().get("made")).flatten();
            (status, made.unwrap_or(Value::NONE))
        }
    };
    let host = Host::new();
    let (status, made) = convert(&host, &["/a.old", "/b", r#"{"tokenizer": "/t"}"#]);
    let made: serde_json::Value = serde_json::from_str(made.as_str().unwrap()).unwrap();
    assert_eq!((status, made), (abi::OK, json!({"kind": "/t", "output": "/b"})));
    let (status, made) = convert(&host, &["/a.new", "/b", "{}"]);
    assert_eq!((status, made.as_str()), (abi::OK, None));
    assert_eq!(convert(&Host::new().stop_at(1), &["/a.old", "/b", "{}"]).0, abi::CANCELLED);
    assert_eq!(convert(&host, &["/a.old", "/b"]).0, abi::ERROR);
    assert!(host.failure().unwrap().1.contains("text is missing"));
    assert_eq!(convert(&host, &["/a.old", "/b", "no JSON"]).0, abi::ERROR);
}

#[test]
fn references_are_counted() {
    use std::sync::Arc;
    let witness = Arc::new(());
    let data = [1f32, 2.0];
    let owner: Box<dyn std::any::Any + Send + Sync> = Box::new((witness.clone(), data));
    let pointer = owner.downcast_ref::<(Arc<()>, [f32; 2])>().unwrap().1.as_ptr();
    // SAFETY: the owner holds the two values.
    let tensor = unsafe {
        Tensor::from_owner(
            pointer.cast_mut().cast(),
            abi::DLDevice::CPU,
            abi::DLDataType::F32,
            &[2],
            owner,
        )
    };
    let list = Value::list(vec![tensor.clone().into_value(), Value::string("x")]);
    let map = Value::map([("list", list.clone())]);
    drop((tensor, list));
    assert_eq!(Arc::strong_count(&witness), 2);
    let found = map.get("list").unwrap().as_list().unwrap()[0].as_tensor().unwrap();
    drop(map);
    assert_eq!(found.to_f32().unwrap(), [1.0, 2.0].as_slice());
    drop(found);
    assert_eq!(Arc::strong_count(&witness), 1);
}

#[test]
fn a_strided_view_is_gathered() {
    // A transposed 2 × 3 tensor, as another library may hand it over.
    let tensor = Tensor::from_f32(&[2, 3], (0..6).map(|i| i as f32).collect()).unwrap();
    let value = tensor.into_value();
    // SAFETY: the view's own memory, changed before anyone reads it.
    unsafe {
        let view = (*value.as_raw().payload.tensor).dl.cast_mut();
        std::slice::from_raw_parts_mut((*view).dl_tensor.shape, 2).copy_from_slice(&[3, 2]);
        std::slice::from_raw_parts_mut((*view).dl_tensor.strides, 2).copy_from_slice(&[1, 3]);
    }
    let transposed = value.as_tensor().unwrap();
    assert_eq!(transposed.to_f32().unwrap(), [0., 3., 1., 4., 2., 5.].as_slice());
}

proptest! {
    #[test]
    fn values_survive_the_round_trip(text in ".*", number: f64, bits: u64, keys in prop::collection::vec("[a-z]{1,4}", 0..5)) {
        let map = Value::map(keys.iter().map(|key| (key.clone(), Value::from(bits))));
        let list = Value::list(vec![Value::string(text.clone()), number.into(), map]);
        // SAFETY: the reference goes out and comes back.
        let back = unsafe { Value::adopt(list.clone().into_raw()) }.unwrap();
        drop(list);
        let items = back.as_list().unwrap();
        prop_assert_eq!(items[0].as_str(), Some(text.as_str()));
        prop_assert_eq!(items[1].as_f64().map(f64::to_bits), Some(number.to_bits()));
        let pairs = items[2].as_map().unwrap();
        // The first of two with one key stays.
        let mut unique = std::collections::HashSet::new();
        let keys: Vec<&String> = keys.iter().filter(|key| unique.insert(*key)).collect();
        prop_assert_eq!(pairs.len(), keys.len());
        prop_assert!(pairs.iter().zip(keys).all(|((k, v), key)| k == key && v.as_u64() == Some(bits)));
    }
}
