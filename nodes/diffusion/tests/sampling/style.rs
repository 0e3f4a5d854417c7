//! A picture's style behind a text's tokens, and a hypernetwork beside an attention.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use candle_core::Device;
use node::interface::{self, AttentionCall, Patch, marker};
use node::*;

use super::host::{one, run, tensor, values};
use super::{close, says};

/// Of a tensor's place in its file.
fn numbers(k: usize, count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 31 + k * 17) % 101) as f32 / 101.0 - 0.5).collect()
}

/// A style adapter of 16 numbers in, 3 tokens of 6 out, under the published file's names.
fn style_adapter(path: &Path) {
    let (width, context, tokens) = (16, 6, 3);
    let mut shapes = vec![
        ("style_embedding".to_owned(), vec![1, tokens, width]),
        ("proj".to_owned(), vec![width, context]),
    ];
    let norms = ["ln_pre.weight", "ln_pre.bias", "ln_post.weight", "ln_post.bias"];
    shapes.extend(norms.map(|norm| (norm.to_owned(), vec![width])));
    for layer in 0..2 {
        let parts = [
            ("attn.in_proj_weight", vec![3 * width, width]),
            ("attn.in_proj_bias", vec![3 * width]),
            ("attn.out_proj.weight", vec![width, width]),
            ("attn.out_proj.bias", vec![width]),
            ("ln_1.weight", vec![width]),
            ("ln_1.bias", vec![width]),
            ("mlp.c_fc.weight", vec![4 * width, width]),
            ("mlp.c_fc.bias", vec![4 * width]),
            ("mlp.c_proj.weight", vec![width, 4 * width]),
            ("mlp.c_proj.bias", vec![width]),
            ("ln_2.weight", vec![width]),
            ("ln_2.bias", vec![width]),
        ];
        let named = |(name, shape)| (format!("transformer_layes.{layer}.{name}"), shape);
        shapes.extend(parts.map(named));
    }
    let tensor = |(k, (name, shape)): (usize, (String, Vec<usize>))| {
        let values = numbers(k, shape.iter().product());
        (name, candle_core::Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    };
    let all: HashMap<_, _> = shapes.into_iter().enumerate().map(tensor).collect();
    candle_core::safetensors::save(&all, path).unwrap();
}

/// The tokens are torch's: MultiheadAttention, layer_norm and linear of weights by the same formula.
#[test]
fn a_style_comes_behind_the_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("style.safetensors");
    style_adapter(&path);
    let name = ("style_model_name", Value::string(path.to_str().unwrap()));
    let style_model = one("StyleModelLoader", &[name]);
    let seen: Vec<f32> = numbers(77, 2 * 5 * 16).into_iter().map(|x| x * 3.0).collect();
    let vision = Value::map([
        ("last_hidden_state", tensor(&[2, 5, 16], seen)),
        ("image_embeds", tensor(&[2, 1], vec![0.0; 2])),
    ]);
    let said = numbers(5, 2 * 6);
    let applied = |conditioning: Value, more: &[(&str, Value)]| {
        let inputs = [
            ("conditioning", conditioning),
            ("style_model", style_model.clone()),
            ("clip_vision_output", vision.clone()),
        ];
        run("StyleModelApply", &[&inputs[..], more].concat()).map(|mut values| values.remove(0))
    };
    let text = || {
        let entry = Value::map([("context", tensor(&[1, 2, 6], said.clone()))]);
        Value::list(vec![entry.with("strength", 0.75.into())])
    };
    let tokens = [
        -0.46752, -0.155971, 0.361137, -0.0235904, 0.0898192, -0.0580265, -0.44519, -0.174256,
        0.36487, -0.0184469, 0.0766417, -0.0588039, -0.436781, -0.177251, 0.364979, -0.0239971,
        0.0723285, -0.0577175, -0.517094, -0.135819, 0.362931, -0.0246117, 0.102092, -0.0781145,
        -0.49712, -0.15284, 0.365592, -0.018284, 0.0893117, -0.0790734, -0.48955, -0.155486,
        0.365476, -0.0232111, 0.0851619, -0.0780469,
    ];
    for (strength, more) in [(1.0, vec![]), (2.0, vec![("strength", Value::from(2.0))])] {
        let entry = applied(text(), &more).unwrap().as_list().unwrap().remove(0);
        let context = entry.get("context").unwrap();
        // Two tokens of the text, then three of each picture.
        assert_eq!(context.as_tensor().unwrap().shape(), [1, 8, 6]);
        let behind = tokens.iter().map(|token| token * strength);
        let expected: Vec<f32> = said.iter().copied().chain(behind).collect();
        close(&values(&context), &expected, 5e-5);
        assert_eq!(entry.get("strength").unwrap().as_f64(), Some(0.75));
    }
    let told = applied(says(0.7), &[]).err().unwrap();
    assert!(told.starts_with("style_model: its tokens are 6 numbers wide"), "{told}");
    let biased = [("strength", 0.5.into()), ("strength_type", Value::string("attn_bias"))];
    let told = applied(text(), &biased).err().unwrap();
    assert!(told.starts_with("strength_type: "), "{told}");
}

/// What an attention was asked of: keys' and values' contexts.
type Asked = Arc<Mutex<Vec<[Vec<f32>; 2]>>>;

/// An attention that writes down what it is asked of.
struct Listening(Asked);

impl Export for Listening {
    const TYPE: &'static str = "ATTENTION";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Listening: marker::Attention];
}

impl interface::Attend for Listening {
    fn attend(
        &self,
        _cx: &Context,
        x: &Tensor,
        (keys, values): (Option<&Tensor>, Option<&Tensor>),
        _further: Option<(&Tensor, &Tensor)>,
    ) -> Result<Tensor> {
        let keys = keys.unwrap_or(x);
        self.0.lock().unwrap().push([keys.to_vec()?, values.unwrap_or(keys).to_vec()?]);
        Ok(x.clone())
    }
}

/// A model whose attentions are asked once for each patch that it is given: of four numbers, then of five.
struct Asking(Asked, Arc<Mutex<Vec<String>>>);

impl Export for Asking {
    const TYPE: &'static str = "MODEL";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Asking: marker::Patches];
}

/// What the hypernetworks' reference numbers are of.
fn given(k: usize) -> Vec<f32> {
    (0..8).map(|i| (((i * 37 + k * 11) % 23) as f32 / 11.5 - 1.0) * 2.0).collect()
}

impl interface::TakePatches for Asking {
    fn with_patches(&self, cx: &Context, patches: Vec<Patch>) -> Result<Object> {
        for patch in patches {
            self.1.lock().unwrap().push(patch.kind.clone());
            let wide = Tensor::from_f32(&[1, 1, 5], vec![1.0, 2.0, 3.0, 4.0, 5.0])?;
            let keys = Tensor::from_f32(&[1, 2, 4], given(1))?;
            let values = Tensor::from_f32(&[1, 2, 4], given(4))?;
            for (context, value_context) in [(keys, Some(values)), (wide, None)] {
                let call = AttentionCall {
                    x: Tensor::from_f32(&[1, 1, 2], vec![0.25, 0.5])?,
                    context,
                    value_context,
                    attention: Object::new(Listening(self.0.clone())),
                    block: "mid_block".to_owned(),
                    height: 1,
                    width: 1,
                    sigma: 1.0,
                    rows: Vec::new(),
                    latent: None,
                };
                close(&patch.patch.patch_attention(cx, call)?.to_vec()?, &[0.25, 0.5], 0.0);
            }
        }
        Ok(Object::new(Self(self.0.clone(), self.1.clone())))
    }
}

/// The numbers are torch's: tests/data/make_hypernetwork.py.
#[test]
fn a_hypernetwork_changes_what_keys_and_values_are_made_of() {
    let (asked, kinds) = (Asked::default(), Arc::default());
    let model = Object::new(Asking(asked.clone(), Arc::clone(&kinds))).into_value();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/hypernetwork_tanh.pt");
    let inputs = [
        ("model", model),
        ("hypernetwork_name", Value::string(file.to_str().unwrap())),
        ("strength", 0.5.into()),
    ];
    one("HypernetworkLoader", &inputs);
    assert_eq!(*kinds.lock().unwrap(), ["self_attention", "cross_attention"]);
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 4);
    let keys = [-0.168153, -1.22557, 1.0866, -0.620434, 1.91315, 0.521288, -1.69902, 0.62396];
    let values =
        [2.0307, -0.0759023, -1.79102, 0.595343, -0.425956, 1.56764, -0.0734517, -0.993304];
    for of_kind in asked.chunks(2) {
        close(&of_kind[0][0], &keys, 2e-5);
        close(&of_kind[0][1], &values, 2e-5);
        // Of five numbers it has no networks.
        for untouched in &of_kind[1] {
            close(untouched, &[1.0, 2.0, 3.0, 4.0, 5.0], 0.0);
        }
    }
}

/// Who was put where: the first number of each picture, and the place.
type Put = Arc<Mutex<Vec<(Vec<f32>, usize)>>>;

/// A PhotoMaker that writes down where it is asked to put whom.
struct Putting(Put);

impl Export for Putting {
    const TYPE: &'static str = "PHOTOMAKER";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Putting: marker::PhotoMaker];
}

impl interface::PutPerson for Putting {
    fn put_person(
        &self,
        _cx: &Context,
        image: &Tensor,
        text: &Tensor,
        at: usize,
    ) -> Result<Tensor> {
        let each = image.shape()[1..].iter().product();
        let firsts = image.to_vec()?.into_iter().step_by(each).collect();
        self.0.lock().unwrap().push((firsts, at));
        let mut text_with_it = text.to_vec()?;
        text_with_it[at] = -1.0;
        Tensor::from_f32(&text.shape(), text_with_it)
    }
}

/// A CLIP whose tokens are the lengths of the words.
struct Lengths;

impl Export for Lengths {
    const TYPE: &'static str = "CLIP";
    const INTERFACES: &'static [InterfaceEntry] = interfaces![Lengths: marker::TextEncoder];
}

impl interface::EncodeText for Lengths {
    fn encode_text(&self, _cx: &Context, text: &str) -> Result<(Tensor, Option<Tensor>)> {
        let lengths: Vec<f32> = text.split(' ').map(|word| word.len() as f32).collect();
        let pooled = Tensor::from_f32(&[1, 1], vec![lengths.iter().sum()])?;
        Ok((Tensor::from_f32(&[1, lengths.len(), 1], lengths)?, Some(pooled)))
    }
}

/// As in ComfyUI, whose code was read: the word itself is no token, the place is as many tokens on as there are words before it, and
/// one picture is seen.
#[test]
fn a_person_is_put_where_the_word_is() {
    let asked = Put::default();
    let encoded = |text: &str| {
        let inputs = [
            ("photomaker", Object::new(Putting(Arc::clone(&asked))).into_value()),
            ("image", tensor(&[2, 1, 1, 3], vec![0.25, 0.0, 0.0, 0.75, 0.0, 0.0])),
            ("clip", Object::new(Lengths).into_value()),
            ("text", Value::string(text)),
        ];
        let entry = one("PhotoMakerEncode", &inputs).as_list().unwrap().remove(0);
        [values(&entry.get("context").unwrap()), values(&entry.get("pooled").unwrap())]
    };
    let [context, pooled] = encoded("a photograph of photomaker outside");
    assert_eq!(context, [1.0, 10.0, 2.0, -1.0]);
    assert_eq!(pooled, [20.0]);
    assert_eq!(asked.lock().unwrap().split_off(0), [(vec![0.25], 3)]);
    // Without the word, and where it is only part of one.
    assert_eq!(encoded("a photomakers house")[0], [1.0, 11.0, 5.0]);
    assert!(asked.lock().unwrap().is_empty());
}
