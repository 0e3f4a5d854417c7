//! PreviewImage: pictures to look at now, in the folder for temporary files.

use std::hash::{BuildHasher, Hasher, RandomState};

use node::{Context, Image, Inputs, Node, Result, outputs};

use super::save_image::{Destination, save_pictures};

/// Saves pictures in the folder for temporary files, quickly packed, for looking at while working. The pictures are passed on.
#[derive(Inputs)]
#[node(category = "image", output_node, writes = "temp")]
pub struct PreviewImage {
    /// The pictures to show.
    pub images: Image,
}

impl Node for PreviewImage {
    outputs![images: Image];

    fn run(self, cx: &Context) -> Result<Image> {
        let to = Destination { property: "temp_directory", kind: "temp", compression: 1 };
        let prefix = format!("ComfyUI_temp_{}", random_letters());
        save_pictures(cx, &self.images, &prefix, &to)?;
        Ok(self.images)
    }
}

/// Five letters, so that a viewer which keeps pictures by name does not show those of an earlier start.
pub(super) fn random_letters() -> String {
    let mut bits = RandomState::new().build_hasher().finish();
    let mut letter = || {
        let letter = b'a' + (bits % 26) as u8;
        bits /= 26;
        char::from(letter)
    };
    (0..5).map(|_| letter()).collect()
}
