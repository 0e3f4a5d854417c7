//! What crosses the boundary, as data: socket types and interfaces with the shapes of their values. The host
//! checks by it, the conformance test calls by it, the SDK's stubs read by it, and a test holds the text
//! of `node.h` against it. A new interface is one more row.

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

/// The layers of a LoRA of any kind.
const LAYERS: Of = Named(&Map(&[part("factors", Named(&Tensor(&[]))), optional("alpha", Float)]));

/// What a network is trained on. Its numbers are its own: two may be of other sizes.
const EXAMPLE: &[Part] = &[
    part("latents", Tensor(&["1,*,*,*"])),
    part("context", Tensor(&["1,*,*"])),
    optional("pooled", Tensor(&["1,*"])),
    optional("sizes", Tensor(&["1,*"])),
];

/// What a denoiser is called with, by samplers and by ControlNets.
const X: Part = part("x", LATENTS);
const TIMESTEP: Part = part("timestep", Tensor(&["B"]));
const CONTEXT: Part = part("context", Tensor(&["B,T,D"]));
/// By the names of blocks.
const FEATURES: Of = Named(&Tensor(&["*,*,*,*"]));
/// What else a U-Net of a family may take.
const POOLED: Part = optional("pooled", Tensor(&["B,P"]));
const SIZES: Part = optional("sizes", Tensor(&["B,6", "B,5"]));

/// The interfaces of `node.h`.
pub const INTERFACES: &[Interface] = &[
    Interface {
        id: "denoiser/1",
        types: &["MODEL"],
        required: &["MODEL"],
        input: &[
            X,
            TIMESTEP,
            CONTEXT,
            optional("residuals", ANY_TENSORS),
            POOLED,
            SIZES,
            optional("features", FEATURES),
            optional("extra_tokens", List(&Map(TOKENS))),
            optional("rows", List(&Text)),
        ],
        output: &[part("prediction", Tensor(&["B,*,H,W"]))],
    },
    Interface {
        id: "control/1",
        types: &["CONTROL_NET"],
        required: &["CONTROL_NET"],
        input: &[
            X,
            TIMESTEP,
            CONTEXT,
            part("hint", Tensor(&["*,3,8H,8W"])),
            part("strength", Float),
            optional("guess", Bool),
            POOLED,
            SIZES,
        ],
        output: &[part("residuals", ANY_TENSORS), optional("features", FEATURES)],
    },
    Interface {
        id: "control_of/1",
        types: &["MODEL"],
        required: &[],
        input: &[
            part("weights", Named(&Tensor(&[]))),
            optional("differences", Named(&Tensor(&[]))),
            optional("up", Named(&Tensor(&[]))),
            optional("down", Named(&Tensor(&[]))),
        ],
        output: &[part("control_net", Object(&["CONTROL_NET"]))],
    },
    Interface {
        id: "base_model/1",
        types: &["CONTROL_NET"],
        required: &[],
        input: &[part("model", Object(&["MODEL"]))],
        output: &[part("control_net", Object(&["CONTROL_NET"]))],
    },
    Interface {
        id: "control_type/1",
        types: &["CONTROL_NET"],
        required: &[],
        input: &[part("type", Int)],
        output: &[part("control_net", Object(&["CONTROL_NET"]))],
    },
    Interface {
        id: "model_sampling/1",
        types: &["MODEL"],
        required: &[],
        input: &[part("description", Text)],
        output: &[part("model", Object(&["MODEL"]))],
    },
    Interface {
        id: "patch/1",
        types: &["MODEL"],
        required: &[],
        input: &[part("patches", List(&Map(PATCH)))],
        output: &[part("model", Object(&["MODEL"]))],
    },
    Interface {
        id: "attention_patch/1",
        types: &["PATCH"],
        required: &[],
        input: &[
            part("x", Tensor(&["B,N,D"])),
            part("context", Tensor(&["B,T,E"])),
            optional("value_context", Tensor(&["B,T,E"])),
            part("attention", Object(&["ATTENTION"])),
            part("block", Text),
            part("height", Int),
            part("width", Int),
            part("sigma", Float),
            part("rows", List(&Text)),
            optional("latent_height", Int),
            optional("latent_width", Int),
        ],
        output: &[part("x", Tensor(&["B,N,D"]))],
    },
    Interface {
        id: "attention/1",
        types: &["ATTENTION"],
        required: &["ATTENTION"],
        input: &[
            part("x", Tensor(&["B,N,D"])),
            optional("context", Tensor(&["B,T,E"])),
            optional("value_context", Tensor(&["B,T,E"])),
            optional("keys", Tensor(&["B,S,E"])),
            optional("values", Tensor(&["B,S,E"])),
            optional("wants_weights", Bool),
        ],
        output: &[part("x", Tensor(&["B,N,D"])), optional("weights", Tensor(&["B,A,N,*"]))],
    },
    Interface {
        id: "tokens_patch/1",
        types: &["PATCH"],
        required: &[],
        input: &[
            part("x", Tensor(&["B,N,D"])),
            part("block", Text),
            part("height", Int),
            part("width", Int),
            part("sigma", Float),
            part("rows", List(&Text)),
            optional("latent_height", Int),
            optional("latent_width", Int),
        ],
        output: &[part("x", Tensor(&["B,N,D"]))],
    },
    Interface {
        id: "grounding/1",
        types: &["GLIGEN"],
        required: &["GLIGEN"],
        input: &[part("boxes", List(&Map(BOX)))],
        output: &[part("patches", List(&Map(PATCH)))],
    },
    Interface {
        id: "style_model/1",
        types: &["STYLE_MODEL"],
        required: &["STYLE_MODEL"],
        input: &[part("last_hidden_state", Tensor(&["B,T,D"]))],
        output: &[part("tokens", Tensor(&["B,*,*"]))],
    },
    Interface {
        id: "photo_maker/1",
        types: &["PHOTOMAKER"],
        required: &["PHOTOMAKER"],
        input: &[part("image", PICTURE), part("context", Tensor(&["1,T,E"])), part("at", Int)],
        output: &[part("context", Tensor(&["1,T,E"]))],
    },
    Interface {
        id: "block_patch/1",
        types: &["PATCH"],
        required: &[],
        input: &[
            part("x", LATENTS),
            optional("skip", Tensor(&["B,S,*,*"])),
            part("block", Text),
            part("sigma", Float),
            part("rows", List(&Text)),
        ],
        output: &[part("x", Tensor(&["B,C,*,*"])), optional("skip", Tensor(&["B,S,*,*"]))],
    },
    Interface {
        id: "sides_patch/1",
        types: &["PATCH"],
        required: &[],
        input: &[
            X,
            part("sigma", Float),
            part("conditional", LATENTS),
            optional("unconditional", LATENTS),
        ],
        output: &[part("conditional", LATENTS), optional("unconditional", LATENTS)],
    },
    Interface {
        id: "guidance/1",
        types: &["MODEL"],
        required: &[],
        input: &[],
        output: &[part("patches", List(&Map(PATCH)))],
    },
    Interface {
        id: "guidance_patch/1",
        types: &["PATCH"],
        required: &[],
        input: &[
            X,
            part("sigma", Float),
            part("conditional", LATENTS),
            optional("unconditional", LATENTS),
            part("denoised", LATENTS),
            part("cfg", Float),
            part("sides", Object(&["SIDES"])),
        ],
        output: &[part("denoised", LATENTS)],
    },
    Interface {
        id: "sides/1",
        types: &["SIDES"],
        required: &["SIDES"],
        input: &[
            X,
            part("sigma", Float),
            part("side", Text),
            optional("conditioning", List(&Any)),
            optional("patches", List(&Map(PATCH))),
        ],
        output: &[part("denoised", LATENTS)],
    },
    Interface {
        id: "text_encoder/1",
        types: &["CLIP"],
        required: &["CLIP"],
        input: &[part("text", Text), optional("texts", Named(&Text))],
        output: &[part("context", Tensor(&["1,T,D"])), optional("pooled", Tensor(&["1,P"]))],
    },
    Interface {
        id: "text_layers/1",
        types: &["CLIP"],
        required: &[],
        input: &[part("stop_at_clip_layer", Int)],
        output: &[part("clip", Object(&["CLIP"]))],
    },
    Interface {
        id: "clip_vision/1",
        types: &["CLIP_VISION"],
        required: &["CLIP_VISION"],
        input: &[part("image", PICTURE), part("crop", Bool)],
        output: VISION,
    },
    Interface {
        id: "vae_decode/1",
        types: &["VAE"],
        required: &["VAE"],
        input: &[part("latents", LATENTS)],
        output: &[part("image", Tensor(&["B,*,*,3"]))],
    },
    Interface {
        id: "vae_encode/1",
        types: &["VAE"],
        required: &[],
        input: &[part("image", RGB)],
        output: &[part("latents", Tensor(&["B,*,*,*"]))],
    },
    Interface {
        id: "vae_decode_tiled/1",
        types: &["VAE"],
        required: &[],
        input: &[part("latents", LATENTS), part("tile", Int), part("overlap", Int)],
        output: &[part("image", Tensor(&["B,*,*,3"]))],
    },
    Interface {
        id: "vae_encode_tiled/1",
        types: &["VAE"],
        required: &[],
        input: &[part("image", RGB), part("tile", Int), part("overlap", Int)],
        output: &[part("latents", Tensor(&["B,*,*,*"]))],
    },
    Interface {
        id: "upscale/1",
        types: &["UPSCALE_MODEL"],
        required: &["UPSCALE_MODEL"],
        input: &[part("image", RGB), optional("tile", Int), optional("overlap", Int)],
        output: &[part("image", Tensor(&["B,*,*,3"]))],
    },
    Interface {
        id: "features/1",
        types: &["FEATURES"],
        required: &["FEATURES"],
        input: &[optional("image", PICTURE), optional("text", Text)],
        output: &[part("features", Tensor(&["*,F"]))],
    },
    Interface {
        id: "image_encoder/1",
        types: &["KOSMOS", "IMAGE_ENCODER"],
        required: &["KOSMOS", "IMAGE_ENCODER"],
        input: &[part("image", RGB)],
        output: &[part("tokens", Tensor(&["B,Q,D"]))],
    },
    Interface {
        id: "interleave/1",
        types: &["KOSMOS"],
        required: &["KOSMOS"],
        input: &[part("text", Text), part("images", List(&Tensor(&["1,Q,D"])))],
        output: &[part("hidden_states", Tensor(&["1,T,*"])), part("mask", Tensor(&["1,T"]))],
    },
    Interface {
        id: "align/1",
        types: &["KOSMOS"],
        required: &["KOSMOS"],
        input: &[part("hidden_states", Tensor(&["B,T,D"])), part("mask", Tensor(&["B,T"]))],
        output: &[part("context", Tensor(&["B,*,*"]))],
    },
    Interface {
        id: "lora/1",
        types: &["MODEL", "CLIP"],
        required: &[],
        input: &[
            part(
                "layers",
                Named(&Map(&[
                    part("up", Tensor(&["*,*", "*,*,1,1"])),
                    part("down", Tensor(&["*,*", "*,*,*,*"])),
                    optional("mid", Tensor(&["*,*,*,*"])),
                    part("scale", Float),
                ])),
            ),
            part("strength", Float),
        ],
        output: &[part("object", Object(&["MODEL", "CLIP"])), part("absent", List(&Text))],
    },
    Interface {
        id: "lora/2",
        types: &["MODEL", "CLIP"],
        required: &[],
        input: &[part("layers", LAYERS), part("strength", Float)],
        output: &[part("object", Object(&["MODEL", "CLIP"])), part("absent", List(&Text))],
    },
    Interface {
        id: "weights/1",
        types: &["MODEL", "CLIP", "VAE"],
        required: &[],
        input: &[optional("name", Text)],
        output: &[
            optional("tensors", Named(&Map(&[part("shape", List(&Int)), part("type", Text)]))),
            optional("tensor", Tensor(&[])),
        ],
    },
    Interface {
        id: "merge/1",
        types: &["MODEL", "CLIP"],
        required: &[],
        input: &[
            part("tensors", Named(&Map(&[part("own", Float), optional("other", Float)]))),
            optional("other", Object(&["MODEL", "CLIP"])),
        ],
        output: &[part("object", Object(&["MODEL", "CLIP"])), part("absent", List(&Text))],
    },
    Interface {
        id: "latent_operation/1",
        types: &["LATENT_OPERATION"],
        required: &["LATENT_OPERATION"],
        input: &[part("latents", LATENTS)],
        output: &[part("latents", LATENTS)],
    },
    Interface {
        id: "train_lora/1",
        types: &["MODEL"],
        required: &[],
        input: &[
            part("examples", List(&Map(EXAMPLE))),
            part("settings", Text),
            optional("layers", LAYERS),
        ],
        output: &[part("layers", LAYERS), part("losses", List(&Float))],
    },
    Interface {
        id: "sampler/1",
        types: &["SAMPLER"],
        required: &["SAMPLER"],
        input: &[
            part("guider", Object(&["GUIDER"])),
            part("sigmas", SIGMAS),
            part("latents", LATENTS),
            part("noise", Object(&["NOISE"])),
            optional("noise_mask", Tensor(&["*,*,*"])),
            optional("batch_index", List(&Int)),
        ],
        output: &[part("latents", Tensor(&["B,C,*,*"])), part("denoised", Tensor(&["B,C,*,*"]))],
    },
    Interface {
        id: "sigmas/1",
        types: &["MODEL"],
        required: &[],
        input: &[part("scheduler", Text), part("steps", Int), optional("denoise", Float)],
        output: &[part("sigmas", SIGMAS)],
    },
    Interface {
        id: "guider/1",
        types: &["GUIDER"],
        required: &["GUIDER"],
        input: &[
            X,
            part("sigma", Float),
            optional("latents", LATENTS),
            optional("noise_mask", Tensor(&["*,*,*"])),
            optional("wants_unconditional", Bool),
        ],
        output: &[part("denoised", LATENTS), optional("unconditional", LATENTS)],
    },
    Interface {
        id: "noise/1",
        types: &["NOISE"],
        required: &["NOISE"],
        input: &[part("latents", LATENTS), optional("batch_index", List(&Int))],
        output: &[part("noise", LATENTS), optional("seed", Int)],
    },
    Interface {
        id: "describe/1",
        types: &[],
        required: &["MODEL", "GUIDER"],
        input: &[],
        output: &[part("description", Text)],
    },
    Interface {
        id: "memory/1",
        types: &[],
        required: &[],
        input: &[part("purge", Bool)],
        output: &[part("bytes", Int)],
    },
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
