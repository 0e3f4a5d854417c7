//! The example of the README: a node library of one node.

use node::*;

/// Inverts an image.
#[derive(Inputs)]
struct ImageInvert {
    image: Image,
    /// How much of it: 0 leaves the picture as it is.
    #[widget(default = 1.0, min = 0.0, max = 1.0)]
    strength: f64,
}

impl Node for ImageInvert {
    outputs![image: Image];

    fn run(self, _cx: &Context) -> Result<Image> {
        let pixels = self.image.0.to_f32()?;
        let mix = |&x: &f32| x + self.strength as f32 * (1.0 - 2.0 * x);
        Ok(Image(Tensor::from_f32(&self.image.0.shape(), pixels.iter().map(mix).collect())?))
    }
}

node::library![ImageInvert];

#[cfg(test)]
mod tests {
    use node::testing::{Host, this_library};
    use node::*;

    #[test]
    fn white_becomes_black() -> std::result::Result<(), String> {
        let run = || -> Result<Vec<f32>> {
            let picture = Tensor::from_f32(&[1, 1, 1, 3], vec![1.0, 0.25, 0.0])?.into_value();
            let made = Host::new().run(&this_library!(), "ImageInvert", &[("image", picture)])?;
            made[0].as_tensor().ok_or_else(|| Error::new("no tensor"))?.to_vec()
        };
        assert_eq!(run().map_err(|error| error.to_string())?, [0.0, 0.75, 1.0]);
        Ok(())
    }
}
