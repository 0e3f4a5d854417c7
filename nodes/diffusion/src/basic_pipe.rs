//! A BASIC_PIPE: a model with its CLIP, its VAE and two conditionings along one link.

use node::*;

/// The five by their names.
#[derive(Clone)]
pub struct BasicPipe(Value);

impl Socket for BasicPipe {
    const TYPE: &'static str = "BASIC_PIPE";

    fn from_value(value: Value) -> Result<Self> {
        let names = ["model", "clip", "vae", "positive", "negative"];
        match names.iter().find(|name| value.get(name).is_none()) {
            None => Ok(Self(value)),
            Some(name) => Err(Error::new(format!(
                "BASIC_PIPE (a map of {}) is wanted, but in {} there is no {name}",
                names.join(", "),
                value.kind_name()
            ))),
        }
    }

    fn into_value(self) -> Value {
        self.0
    }
}

impl BasicPipe {
    fn part<T: Socket>(&self, name: &str) -> Result<T> {
        let part = self.0.get(name).unwrap_or(Value::NONE);
        <T as Socket>::from_value(part).map_err(|error| error.of_input("basic_pipe"))
    }
}

/// Joins a model, its CLIP, its VAE and two conditionings.
#[derive(Inputs)]
#[node(category = "utils")]
pub struct ToBasicPipe {
    model: Model,
    clip: Clip,
    vae: Vae,
    positive: Conditioning,
    negative: Conditioning,
}

impl Node for ToBasicPipe {
    outputs![basic_pipe: BasicPipe];

    fn run(self, _cx: &Context) -> Result<BasicPipe> {
        Ok(BasicPipe(Value::map([
            ("model", self.model.into_value()),
            ("clip", self.clip.into_value()),
            ("vae", self.vae.into_value()),
            ("positive", self.positive.into_value()),
            ("negative", self.negative.into_value()),
        ])))
    }
}

/// Takes apart what ToBasicPipe joined.
#[derive(Inputs)]
#[node(category = "utils")]
pub struct FromBasicPipe {
    basic_pipe: BasicPipe,
}

impl Node for FromBasicPipe {
    outputs![model: Model, clip: Clip, vae: Vae, positive: Conditioning, negative: Conditioning];

    fn run(self, _cx: &Context) -> Result<(Model, Clip, Vae, Conditioning, Conditioning)> {
        let pipe = self.basic_pipe;
        Ok((
            pipe.part("model")?,
            pipe.part("clip")?,
            pipe.part("vae")?,
            pipe.part("positive")?,
            pipe.part("negative")?,
        ))
    }
}

/// As FromBasicPipe, with the whole in front.
#[derive(Inputs)]
#[node(class = "FromBasicPipe_v2", category = "utils")]
pub struct FromBasicPipeV2 {
    basic_pipe: BasicPipe,
}

impl Node for FromBasicPipeV2 {
    outputs![
        basic_pipe: BasicPipe, model: Model, clip: Clip, vae: Vae, positive: Conditioning, negative: Conditioning
    ];

    fn run(
        self,
        cx: &Context,
    ) -> Result<(BasicPipe, Model, Clip, Vae, Conditioning, Conditioning)> {
        let pipe = self.basic_pipe;
        let (model, clip, vae, positive, negative) =
            FromBasicPipe { basic_pipe: pipe.clone() }.run(cx)?;
        Ok((pipe, model, clip, vae, positive, negative))
    }
}

/// What was joined, with other parts in the places of those that are linked.
#[derive(Inputs)]
#[node(category = "utils")]
pub struct EditBasicPipe {
    basic_pipe: BasicPipe,
    model: Option<Model>,
    clip: Option<Clip>,
    vae: Option<Vae>,
    positive: Option<Conditioning>,
    negative: Option<Conditioning>,
}

impl Node for EditBasicPipe {
    outputs![basic_pipe: BasicPipe];

    fn run(self, _cx: &Context) -> Result<BasicPipe> {
        let others = [
            ("model", self.model.map(Socket::into_value)),
            ("clip", self.clip.map(Socket::into_value)),
            ("vae", self.vae.map(Socket::into_value)),
            ("positive", self.positive.map(Socket::into_value)),
            ("negative", self.negative.map(Socket::into_value)),
        ];
        let mut pipe = self.basic_pipe.0;
        for (name, other) in others {
            if let Some(other) = other {
                pipe = pipe.with(name, other);
            }
        }
        Ok(BasicPipe(pipe))
    }
}
