//! `ImageEncode`: a picture as the multimodal model reads it.

use node::*;

/// Whatever turns pictures to image tokens: Kosmos-G itself, or another library's encoder.
pub struct Encoder(Object);

impl Socket for Encoder {
    const TYPE: &'static str = "KOSMOS,IMAGE_ENCODER";

    fn from_value(value: Value) -> Result<Self> {
        match value.as_object() {
            Some(object) if object.offers("image_encoder/1") => Ok(Self(object)),
            _ => Err(Error::new(format!(
                "something that encodes pictures is wanted, a KOSMOS or an IMAGE_ENCODER, but {} was \
                 given",
                value.kind_name()
            ))),
        }
    }

    fn into_value(self) -> Value {
        self.0.into_value()
    }
}

/// Encodes a picture to the tokens that take the place of an <i> mark in a text.
#[derive(Inputs)]
#[node(category = "kosmograph")]
pub struct ImageEncode {
    /// What encodes: Kosmos-G, or another encoder of the same token width.
    encoder: Encoder,
    /// The picture; its short side is scaled to the encoder's size and its middle is taken.
    image: Image,
}

impl Node for ImageEncode {
    outputs![IMAGE_TOKENS: ImageTokens];

    fn run(self, cx: &Context) -> Result<ImageTokens> {
        let (_, _, _, channels) = self.image.dims();
        if channels != 3 {
            return Err(Error::at("image", format!("3 channels are wanted, it has {channels}")));
        }
        self.encoder.0.encode_image(cx, self.image.0).map(ImageTokens)
    }
}
