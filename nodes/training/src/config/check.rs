//! Whether what a configuration says can be.

use super::*;

impl Config {
    pub(super) fn check(&self) -> Result<()> {
        self.optimiser.check()?;
        if !(0.0..1.0).contains(&self.rate.hold) {
            let hold = self.rate.hold;
            return refuse(format!("rate.hold is {hold}; 0 to less than 1 would be right"));
        }
        let counts = [
            ("steps", self.steps, 1 << 30),
            ("batch", self.batch, 1024),
            ("accumulate", self.accumulate, 1 << 20),
            ("resolution", self.resolution, 16384),
            ("lora.rank", self.lora.rank, 1 << 20),
            ("inversion.vectors", self.inversion.vectors, 75),
        ];
        for (name, value, most) in counts {
            if !(1..=most).contains(&value) {
                return refuse(format!("\"{name}\" is {value}; 1 to {most} would be right"));
            }
        }
        let shares = [
            ("caption_dropout", Some(self.caption_dropout)),
            ("ema", self.ema),
            ("dropout", Some(self.dropout)),
            ("attention_dropout", Some(self.attention_dropout)),
        ];
        for (name, value) in shares {
            if value.is_some_and(|value| !(0.0..=1.0).contains(&value)) {
                return refuse(format!("\"{name}\" is {value:?}; 0 to 1 would be right"));
            }
        }
        let numbers = [
            ("lora.alpha", self.lora.alpha),
            ("noise_offset", self.noise_offset),
            ("min_snr", self.min_snr.unwrap_or(1.0)),
            ("anchor", self.anchor),
            ("prior.weight", self.prior.as_ref().map_or(0.0, |prior| prior.weight)),
        ];
        for (name, value) in numbers {
            if !value.is_finite() || value < 0.0 {
                return refuse(format!("\"{name}\" is {value}; 0 or more would be right"));
            }
        }
        if let Some(samples) = &self.samples
            && (samples.every == 0 || samples.steps == 0)
        {
            return refuse("\"samples\" have 1 or more of \"every\" and of \"steps\"".to_owned());
        }
        let has_prior = matches!(self.task, Task::Dreambooth | Task::Lora);
        if self.prior.is_some() && (!has_prior || self.buckets) {
            return refuse(
                "\"prior\" goes with the tasks dreambooth and lora, and without buckets".to_owned(),
            );
        }
        let has_noise = !matches!(
            self.task,
            Task::Align | Task::Mllm | Task::Vae | Task::Clip | Task::Export | Task::Data
        );
        if self.min_snr.is_some() && !has_noise {
            return refuse(
                "\"min_snr\" goes with tasks that learn from noise, which this one does not"
                    .to_owned(),
            );
        }
        if self.anchor != 0.0 && self.task != Task::Instruct {
            return refuse("\"anchor\" goes with the task instruct".to_owned());
        }
        if self.anchor != 0.0 && !self.shards.is_empty() {
            return refuse(
                "\"anchor\" goes with \"pictures\" that have captions beside them, and not with shards"
                    .to_owned(),
            );
        }
        self.check_kosmos()?;
        self.check_clip()?;
        self.check_autoencoder()?;
        if self.export.is_some() != (self.task == Task::Export) {
            return refuse("\"export\" and the task export go together".to_owned());
        }
        if self.data.is_some() != (self.task == Task::Data) {
            return refuse("\"data\" and the task data go together".to_owned());
        }
        self.data.as_ref().map_or(Ok(()), DataConfig::check)?;
        if self.lora.naming != lora::Naming::Kohya && self.lora.kind != lora::Kind::Lora {
            return refuse("\"lora.naming\" goes with \"lora.kind\": \"lora\"".to_owned());
        }
        if self.control.is_some() != (self.task == Task::Controlnet) {
            return refuse("\"control\" and the task controlnet go together".to_owned());
        }
        if self.task == Task::Inversion && self.inversion.token.trim().is_empty() {
            return refuse(
                "\"inversion.token\" is empty; a word of the captions would be right".to_owned(),
            );
        }
        Ok(())
    }

    fn check_kosmos(&self) -> Result<()> {
        let is_kosmos = self.task.is_kosmos();
        if self.kosmos.is_some() != (is_kosmos || self.task == Task::Clip) {
            return refuse(
                "\"kosmos\" and the tasks align, instruct, mllm and clip go together".to_owned(),
            );
        }
        let dropouts = [("dropout", self.dropout), ("attention_dropout", self.attention_dropout)];
        if !is_kosmos && !self.shards.is_empty() {
            return refuse("\"shards\" go with the tasks align, instruct and mllm".to_owned());
        }
        for (key, share) in dropouts {
            if !is_kosmos && share > 0.0 {
                return refuse(format!("\"{key}\" goes with the tasks align, instruct and mllm"));
            }
            if share >= 1.0 {
                return refuse(format!("\"{key}\" is 1; less would be right"));
            }
        }
        let weights = self.shards.iter().map(|shards| shards.weight);
        if weights.into_iter().any(|weight| !(weight > 0.0 && weight.is_finite())) {
            return refuse("a weight of \"shards\" is not above 0".to_owned());
        }
        let with_pictures =
            self.samples.as_ref().is_some_and(|samples| !samples.pictures.is_empty());
        if with_pictures && self.task != Task::Instruct {
            return refuse("\"samples.pictures\" go with the task instruct".to_owned());
        }
        if self.task == Task::Mllm && self.samples.is_some() {
            return refuse("\"samples\" are not drawn for the task mllm".to_owned());
        }
        if self.task == Task::Mllm && !self.shards.is_empty() {
            return refuse(
                "the task mllm learns from \"pictures\", and not from shards".to_owned(),
            );
        }
        let begins =
            self.task.is_whole_unet() || matches!(self.task, Task::Vae | Task::Mllm | Task::Clip);
        if self.anew && !begins {
            return refuse(
                "\"anew\" goes with the tasks text-to-picture, dreambooth, vae, mllm and clip"
                    .to_owned(),
            );
        }
        let may_be_narrow = self.anew && self.task.is_whole_unet();
        if !self.widths.is_empty() && !may_be_narrow {
            return refuse(
                "\"widths\" go with the tasks text-to-picture and dreambooth, and \"anew\""
                    .to_owned(),
            );
        }
        if self.vision.is_some() && !(self.task == Task::Mllm && self.anew) {
            return refuse("\"vision\" goes with the task mllm and \"anew\"".to_owned());
        }
        Ok(())
    }

    fn check_clip(&self) -> Result<()> {
        if self.task == Task::Clip && self.samples.is_some() {
            return refuse("\"samples\" are not drawn for the task clip".to_owned());
        }
        if self.task == Task::Clip && self.batch < 2 {
            let sentence = "the task clip tells the captions of a batch apart: a \"batch\" of 2 or more would be right";
            return refuse(sentence.to_owned());
        }
        if self.task != Task::Clip && self.clip != ClipConfig::default() {
            return refuse("\"clip\" goes with the task clip".to_owned());
        }
        if self.clip.choices > 64 {
            let sentence =
                format!("\"clip.choices\" is {}; 0 to 64 would be right", self.clip.choices);
            return refuse(sentence);
        }
        Ok(())
    }

    fn check_autoencoder(&self) -> Result<()> {
        let asked = &self.autoencoder;
        if self.task != Task::Vae && *asked != AutoencoderConfig::default() {
            return refuse("\"autoencoder\" goes with the task vae".to_owned());
        }
        let terms = [("square", asked.square), ("edges", asked.edges), ("colour", asked.colour)];
        for (name, weight) in terms {
            if !(0.0..=1e3).contains(&weight) {
                let sentence =
                    format!("\"autoencoder.{name}\" is {weight}; 0 to 1000 would be right");
                return refuse(sentence);
            }
        }
        if !(0.0..=1.0).contains(&asked.cropped) || (asked.cropped > 0.0) != (asked.crop > 0) {
            return refuse(format!(
                "\"autoencoder.cropped\" is {} with a \"crop\" of {} pixels; a share up to 1 and the squares' side would be \
                 right, or neither",
                asked.cropped, asked.crop
            ));
        }
        if asked.crop > self.resolution {
            return refuse(format!(
                "\"autoencoder.crop\" is {}; the \"resolution\", {}, or less would be right",
                asked.crop, self.resolution
            ));
        }
        Ok(())
    }
}
