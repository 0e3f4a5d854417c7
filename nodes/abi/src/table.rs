//! What crosses the boundary, as data: socket types and interfaces with the shapes of their values. The host
//! checks by it, the conformance test calls by it, the SDK's stubs read by it, and a test holds the text
//! of `node.h` against it. A new interface is one more row.

mod interfaces;

pub use interfaces::INTERFACES;

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Any,
    Bool,
    Int,
    Float,
    Text,
    /// A tensor of one of these shapes, `"B,C,H,W"`. A name stands for the same number wherever it
    /// occurs in a call, in what goes in and what comes out; `8H` is eight times it, `*` any number.
    Tensor(&'static [&'static str]),
    List(&'static Of),
    /// A map with these keys; it may have others.
    Map(&'static [Part]),
    /// A map from names that nobody knows beforehand.
    Named(&'static Of),
    /// An object of one of these socket types; of any where there is none.
    Object(&'static [&'static str]),
}

/// A key of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub name: &'static str,
    pub of: Of,
    /// Whether the key may be absent, or [`NONE`](crate::NONE).
    pub optional: bool,
}

/// A socket type, and what its values are.
#[derive(Clone, Copy, Debug)]
pub struct Socket {
    pub name: &'static str,
    pub of: Of,
}

/// An interface: a function of an object, from a map to a map.
#[derive(Clone, Copy, Debug)]
pub struct Interface {
    /// Its name with its revision, "denoiser/1".
    pub id: &'static str,
    /// The socket types whose objects may offer it; any where there is none.
    pub types: &'static [&'static str],
    /// Those whose objects must.
    pub required: &'static [&'static str],
    pub input: &'static [Part],
    pub output: &'static [Part],
}

const fn part(name: &'static str, of: Of) -> Part {
    Part { name, of, optional: false }
}

const fn optional(name: &'static str, of: Of) -> Part {
    Part { name, of, optional: true }
}

use Of::{Any, Bool, Float, Int, List, Map, Named, Object, Tensor, Text};

const PICTURE: Of = Tensor(&["B,H,W,1", "B,H,W,3", "B,H,W,4"]);
const RGB: Of = Tensor(&["B,H,W,3"]);
const MASK: Of = Tensor(&["B,H,W"]);
const LATENTS: Of = Tensor(&["B,C,H,W"]);
const ANY_TENSORS: Of = List(&Tensor(&[]));
const SIGMAS: Of = Tensor(&["N"]);

const VISION: &[Part] = &[
    part("last_hidden_state", Tensor(&["B,T,D"])),
    part("penultimate_hidden_states", Tensor(&["B,T,D"])),
    part("image_embeds", Tensor(&["B,P"])),
];

/// A conditioning's entry. Its numbers are its own: two entries may have other lengths.
const ENTRY: &[Part] = &[
    part("context", Tensor(&["1,*,*"])),
    optional("pooled", Tensor(&["1,*"])),
    optional("control", List(&Map(CONTROL))),
    optional("control_covers_negative", Bool),
    optional("control_context", Tensor(&["1,*,*"])),
    optional("strength", Float),
    optional("area", List(&Any)),
    optional("mask", Tensor(&["*,*,*"])),
    optional("mask_strength", Float),
    optional("area_from_mask", Bool),
    optional("start", Float),
    optional("end", Float),
    optional("concat_latent", Tensor(&["*,*,*,*"])),
    optional("concat_mask", Tensor(&["*,*,*"])),
    optional("concat_scale", Float),
    optional("width", Int),
    optional("height", Int),
    optional("crop_w", Int),
    optional("crop_h", Int),
    optional("target_width", Int),
    optional("target_height", Int),
    optional("aesthetic_score", Float),
    optional("unclip", List(&Map(UNCLIP))),
    optional("grounding", Map(GROUNDING)),
];

/// A picture in the place of a text's pooled vector.
const UNCLIP: &[Part] = &[
    part("image_embeds", Tensor(&["*,*"])),
    part("strength", Float),
    part("noise_augmentation", Float),
];

/// Boxes with texts, and the GLIGEN that reads them.
const GROUNDING: &[Part] = &[part("gligen", Object(&["GLIGEN"])), part("boxes", List(&Map(BOX)))];

const BOX: &[Part] = &[
    part("text", Tensor(&["1,*"])),
    part("height", Int),
    part("width", Int),
    part("y", Int),
    part("x", Int),
];

const CONTROL: &[Part] = &[
    part("control_net", Object(&["CONTROL_NET"])),
    part("hint", Tensor(&["*,*,*,3"])),
    part("strength", Float),
    part("start", Float),
    part("end", Float),
    optional("guess", Bool),
    // A CONTROL again; a table that holds itself is checked where it is walked.
    optional("previous", Any),
];

/// What a cross-attention reads beside the context.
const TOKENS: &[Part] = &[
    part("tokens", Tensor(&["*,*,*"])),
    optional("keys", Named(&Tensor(&["*,*,*"]))),
    optional("values", Named(&Tensor(&["*,*,*"]))),
    optional("weight", Float),
    optional("mask", Tensor(&["*,*,*"])),
];

/// A change inside a U-Net call.
const PATCH: &[Part] = &[
    part("kind", Text),
    part("patch", Object(&["PATCH"])),
    optional("blocks", List(&Text)),
    optional("start", Float),
    optional("end", Float),
    optional("wants_unconditional", Bool),
];

/// The socket types of `node.h`. Any other name is a library's own.
pub const SOCKETS: &[Socket] = &[
    Socket { name: "INT", of: Int },
    Socket { name: "FLOAT", of: Float },
    Socket { name: "STRING", of: Text },
    Socket { name: "COMBO", of: Text },
    Socket { name: "BOOLEAN", of: Bool },
    Socket { name: "IMAGE", of: PICTURE },
    Socket { name: "MASK", of: MASK },
    Socket {
        name: "LATENT",
        of: Map(&[
            part("samples", Tensor(&["B,C,h,w"])),
            optional("noise_mask", Tensor(&["*,*,*"])),
            optional("batch_index", List(&Int)),
            optional("scale", Float),
        ]),
    },
    Socket { name: "CONDITIONING", of: List(&Map(ENTRY)) },
    Socket { name: "CONTROL", of: Map(CONTROL) },
    Socket { name: "IMAGE_TOKENS", of: Tensor(&["1,Q,D"]) },
    Socket {
        name: "HIDDEN_STATES",
        of: Map(&[part("hidden_states", Tensor(&["1,T,D"])), part("mask", Tensor(&["1,T"]))]),
    },
    Socket { name: "CLIP_VISION_OUTPUT", of: Map(VISION) },
    Socket { name: "SIGMAS", of: SIGMAS },
    Socket { name: "MODEL", of: Object(&["MODEL"]) },
    Socket { name: "CLIP", of: Object(&["CLIP"]) },
    Socket { name: "CLIP_VISION", of: Object(&["CLIP_VISION"]) },
    Socket { name: "VAE", of: Object(&["VAE"]) },
    Socket { name: "CONTROL_NET", of: Object(&["CONTROL_NET"]) },
    Socket { name: "UPSCALE_MODEL", of: Object(&["UPSCALE_MODEL"]) },
    Socket { name: "KOSMOS", of: Object(&["KOSMOS"]) },
    Socket { name: "FEATURES", of: Object(&["FEATURES"]) },
    Socket { name: "IMAGE_ENCODER", of: Object(&["IMAGE_ENCODER"]) },
    Socket { name: "SAMPLER", of: Object(&["SAMPLER"]) },
    Socket { name: "GUIDER", of: Object(&["GUIDER"]) },
    Socket { name: "NOISE", of: Object(&["NOISE"]) },
    Socket { name: "GLIGEN", of: Object(&["GLIGEN"]) },
    Socket { name: "STYLE_MODEL", of: Object(&["STYLE_MODEL"]) },
    Socket { name: "PHOTOMAKER", of: Object(&["PHOTOMAKER"]) },
    Socket { name: "LATENT_OPERATION", of: Object(&["LATENT_OPERATION"]) },
];

/// The functions that a library may offer as extensions, from a map to a map as interfaces.
pub const EXTENSIONS: &[Interface] = &[
    Interface { id: "panic/1", types: &[], required: &[], input: &[], output: &[] },
    Interface {
        id: "convert/1",
        types: &[],
        required: &[],
        input: &[part("input", Text), part("output", Text), part("options", Text)],
        output: &[optional("made", Text)],
    },
    Interface {
        id: "train/1",
        types: &[],
        required: &[],
        input: &[part("config", Text), part("folder", Text)],
        output: &[optional("made", Text), optional("declined", Text)],
    },
    Interface {
        id: "evaluate/1",
        types: &[],
        required: &[],
        input: &[part("request", Text)],
        output: &[part("made", Text)],
    },
    Interface {
        id: "check/1",
        types: &[],
        required: &[],
        input: &[part("plan", Text)],
        output: &[part("problems", Text)],
    },
];

/// What a host may offer for a call, from a map to a map, with the context that gave it.
pub const HOST_FUNCTIONS: &[Interface] = &[Interface {
    id: "preview/1",
    types: &[],
    required: &[],
    input: &[
        part("step", Int),
        part("steps", Int),
        optional("latents", LATENTS),
        optional("rgb", Tensor(&["C,3"])),
        optional("bias", Tensor(&["3"])),
        optional("image", Tensor(&["*,*,*,3"])),
    ],
    output: &[],
}];

/// The row of an interface.
pub fn interface(id: &str) -> Option<&'static Interface> {
    INTERFACES.iter().find(|interface| interface.id == id)
}

/// The row of a socket type.
pub fn socket(name: &str) -> Option<&'static Socket> {
    SOCKETS.iter().find(|socket| socket.name == name)
}

impl Of {
    /// The kind of its values; `None` for [`Of::Any`].
    pub const fn kind(self) -> Option<crate::Kind> {
        Some(match self {
            Any => return None,
            Bool => crate::BOOL,
            Int => crate::INT,
            Float => crate::FLOAT,
            Text => crate::STRING,
            Tensor(_) => crate::TENSOR,
            List(_) => crate::LIST,
            Map(_) | Named(_) => crate::MAP,
            Object(_) => crate::OBJECT,
        })
    }
}
