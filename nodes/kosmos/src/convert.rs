//! "convert/1": the authors' checkpoint to the folder that `KosmosLoader` reads, and the tensors of any
//! other torch file to safetensors.

use std::path::Path;

use kosmograph_models::convert::convert;
use node::*;

/// Converts torch files.
pub struct Checkpoints;

impl Convert for Checkpoints {
    fn convert(
        cx: &Context<'_>,
        input: &Path,
        output: &Path,
        options: &serde_json::Value,
    ) -> Result<Option<serde_json::Value>> {
        let tokenizer = options["tokenizer"].as_str().map(Path::new);
        let mut cancelled = false;
        let mut progress = |done: u64, total: u64| {
            // In MiB: numbers that a person can read.
            let mib = |bytes: u64| bytes.div_ceil(1 << 20) as usize;
            cx.progress(mib(done), mib(total).max(1)).map_err(|_| {
                cancelled = true;
                kosmograph_models::Error::Cancelled
            })
        };
        let converted = convert(input, output, tokenizer, &mut progress);
        match converted {
            _ if cancelled => Err(Error::Cancelled),
            converted => Ok(converted?.map(|converted| json!(converted))),
        }
    }
}
