//! "train/1": what `kosmograph train` calls.

use std::path::Path;
use std::time::{Duration, Instant};

use kosmograph_training::stages::{self, Stage};
use kosmograph_training::{Report, Watch, train};
use node::*;

/// LoRA, DreamBooth and textual inversion.
pub struct Trainings;

impl Train for Trainings {
    fn train(cx: &Context<'_>, config: &str, folder: &Path) -> Result<Trained> {
        let stages = stages::read(config, folder).map_err(Error::new)?;
        if let [Stage { config, .. }] = stages.as_slice()
            && config.wants_eyes()
        {
            return Ok(Trained::Declined(
                "\"data.captioner\" and \"data.segmenter\" are networks of the node library vision, which was not found: \
                 `cargo build --release --workspace` builds it (docs/vision.md)"
                    .to_owned(),
            ));
        }
        let mut made = json!({});
        for Stage { name, config } in &stages {
            if !name.is_empty() && config.output.symlink_metadata().is_ok() {
                cx.info(format!("stage {name} is done: {} is there", config.output.display()));
                continue;
            }
            if !name.is_empty() {
                cx.info(format!("stage {name}"));
            }
            let mut told = Told { cx, stopped: false, last: None, losses: Vec::new() };
            made = match train(config, &mut told) {
                Err(kosmograph_training::Error::Cancelled) => return Err(Error::Cancelled),
                Err(_) if told.stopped() => return Err(Error::Cancelled),
                Err(error) if name.is_empty() => return Err(Error::new(error)),
                Err(error) => return Err(Error::new(format!("stage {name}: {error}"))),
                Ok(output) => json!({"output": output, "updates": config.steps}),
            };
        }
        Ok(Trained::Made(made))
    }
}

/// How often a person is told how it goes.
const PAUSE: Duration = Duration::from_secs(10);

/// Tells the host.
struct Told<'a> {
    cx: &'a Context<'a>,
    stopped: bool,
    last: Option<Instant>,
    /// Of the updates since a person was told.
    losses: Vec<f64>,
}

impl Watch for Told<'_> {
    fn update(&mut self, report: &Report) -> kosmograph_training::Result<()> {
        let Report { update, updates, loss, gradient_norm, learning_rate, seconds, seconds_left } =
            *report;
        self.cx.output(&json!({"training": {
            "update": update, "updates": updates, "loss": loss, "gradient_norm": gradient_norm,
            "learning_rate": learning_rate, "seconds": seconds, "seconds_left": seconds_left,
        }}));
        self.losses.push(loss);
        if update == updates || self.last.is_none_or(|last| last.elapsed() > PAUSE) {
            self.last = Some(Instant::now());
            let mean = self.losses.iter().sum::<f64>() / self.losses.len() as f64;
            self.losses.clear();
            let left = for_a_person(seconds_left);
            self.cx.info(format!(
                "update {update} of {updates}: loss {mean:.4}, {seconds:.2} s, {left} left"
            ));
        }
        if self.cx.progress(update, updates).is_err() {
            self.stopped = true;
            return Err(kosmograph_training::Error::Cancelled);
        }
        Ok(())
    }

    fn note(&mut self, sentence: &str, odd: bool) {
        if odd { self.cx.warn(sentence) } else { self.cx.info(sentence) }
    }

    fn made(&mut self, path: &Path) {
        self.cx.output(&json!({"files": [path]}));
    }

    fn seen(&mut self, pictures: usize, of: usize) {
        self.stopped |= self.cx.progress(pictures, of).is_err();
    }

    fn stopped(&self) -> bool {
        self.stopped || self.cx.cancelled().is_err()
    }
}

fn for_a_person(seconds: f64) -> String {
    match seconds {
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 6000.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
