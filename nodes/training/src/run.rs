//! A training from its configuration to its file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::autoencoder::Autoencoder;
use crate::clip::Clip;
use crate::config::{Config, SamplesConfig, Task};
use crate::curated;
use crate::diffusion::Diffusion;
use crate::error::{Error, Result};
use crate::export;
use crate::kosmos_g::Kosmos;
use crate::optimiser::Optimiser;
use crate::parameters::{Gradients, Parameters};
use crate::state::{self, Averages};

/// What one update came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Updates done, and how many there are to be.
    pub update: usize,
    pub updates: usize,
    pub loss: f64,
    /// The norm of the gradients before they were clipped.
    pub gradient_norm: f64,
    pub learning_rate: f64,
    /// What this update took.
    pub seconds: f64,
    /// What the rest will take, as it looks now.
    pub seconds_left: f64,
}

/// Who follows a training.
pub trait Watch {
    /// After each update. An error ends the training, its state written down.
    ///
    /// # Errors
    /// Somebody asked to stop.
    fn update(&mut self, report: &Report) -> Result<()>;

    /// Something that a person ought to know; `odd` if it may be a mistake.
    fn note(&mut self, sentence: &str, odd: bool);

    /// A file was made on the way.
    fn made(&mut self, path: &Path);

    /// How many of the pictures that something is made of were looked at.
    fn seen(&mut self, pictures: usize, of: usize);

    /// Whether somebody asked to stop.
    fn stopped(&self) -> bool;
}

/// Trains as `config` says, from the state on the disk where there is one, and returns the path of what was made.
///
/// # Errors
/// The configuration does not fit the model or the pictures, the output is there already, the loss is no number any
/// more, a file cannot be read or written, or somebody asked to stop; what was reached by then is on the disk.
pub fn train(config: &Config, watch: &mut dyn Watch) -> Result<PathBuf> {
    config.output_is_free()?;
    match config.task {
        Task::Export => return export::write(config, watch),
        Task::Data => return curated::curate(config, None, watch),
        _ => (),
    }
    let mut training = Training::prepare(config, watch)?;
    training.updates(watch)?;
    training.finish(watch)
}

/// What learns, and what from: the loop around it knows no network.
pub(crate) trait Learner {
    fn parameters(&self) -> &Parameters;

    /// The loss of pass number `pass`, and its gradients.
    fn pass(&mut self, pass: usize) -> Result<(f64, Gradients)>;

    /// Draws the samples' prompts with the parameters as they are.
    fn draw(&mut self, samples: &SamplesConfig, done: usize, watch: &mut dyn Watch) -> Result<()>;

    /// Writes what was made.
    fn write(&self, metadata: BTreeMap<String, String>) -> Result<()>;
}

struct Training<'a> {
    config: &'a Config,
    learner: Box<dyn Learner + 'a>,
    optimiser: Optimiser,
    averages: Option<Averages>,
    state: PathBuf,
    /// Whether the state on the disk is that of the present update.
    is_written: bool,
}

impl<'a> Training<'a> {
    fn prepare(config: &'a Config, watch: &mut dyn Watch) -> Result<Training<'a>> {
        let learner: Box<dyn Learner + 'a> = match config.task {
            Task::Vae => Box::new(Autoencoder::prepare(config, watch)?),
            Task::Clip => Box::new(Clip::prepare(config, watch)?),
            task if task.is_kosmos() => Box::new(Kosmos::prepare(config, watch)?),
            _ => Box::new(Diffusion::prepare(config, watch)?),
        };
        let parameters = learner.parameters();
        let mut optimiser = Optimiser::new(&config.optimiser);
        let state = state::path(&config.output);
        let mut averages = None;
        let mut is_written = false;
        if state.is_file() {
            let found = state::read(&state, config, parameters, &mut optimiser)?;
            averages = config.ema.map(|_| found);
            let (done, all) = (optimiser.updates(), config.steps);
            watch.note(
                &format!("going on after {done} of {all} updates ({})", state.display()),
                false,
            );
            is_written = true;
        }
        if config.ema.is_some() && averages.as_ref().is_none_or(BTreeMap::is_empty) {
            averages = Some(parameters.values()?);
        }
        Ok(Training { config, learner, optimiser, averages, state, is_written })
    }

    fn updates(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let config = self.config;
        // What a pass frees the next makes again.
        let _kept = kosmograph_caching_allocator::keep_all();
        let (mut recent, mut last) = (Vec::new(), Instant::now());
        while self.optimiser.updates() < config.steps {
            let ended = match self.update() {
                Ok(mut report) => {
                    self.is_written = false;
                    report.seconds = last.elapsed().as_secs_f64();
                    last = Instant::now();
                    recent.push(report.seconds);
                    let recent = &recent[recent.len().saturating_sub(20)..];
                    let mean = recent.iter().sum::<f64>() / recent.len() as f64;
                    report.seconds_left = mean * (config.steps - report.update) as f64;
                    watch.update(&report)
                }
                Err(error) => Err(error),
            };
            let stopped = watch.stopped();
            if stopped || matches!(ended, Err(Error::Cancelled)) {
                self.write_state()?;
                let (done, all) = (self.optimiser.updates(), config.steps);
                watch.note(
                    &format!(
                        "stopped after {done} of {all} updates; the same command goes on from {}",
                        self.state.display()
                    ),
                    false,
                );
                return Err(Error::Cancelled);
            }
            ended?;
            let done = self.optimiser.updates();
            if config.checkpoint_every > 0 && done.is_multiple_of(config.checkpoint_every) {
                self.write_state()?;
            }
            if let Some(samples) = &config.samples
                && done.is_multiple_of(samples.every)
            {
                self.learner.draw(samples, done, watch)?;
                last = Instant::now();
            }
        }
        Ok(())
    }

    fn update(&mut self) -> Result<Report> {
        let config = self.config;
        let done = self.optimiser.updates();
        let (mut gradients, mut loss) = (Gradients::default(), 0.0);
        for pass in 0..config.accumulate {
            let (of_pass, found) = self.learner.pass(done * config.accumulate + pass)?;
            loss += of_pass / config.accumulate as f64;
            gradients.add(found);
        }
        if !loss.is_finite() || !gradients.norm().is_finite() {
            let kept = match self.state.is_file() {
                true => format!(
                    "; the last state that was written down stays in {}",
                    self.state.display()
                ),
                false => String::new(),
            };
            return Err(Error::Diverged { step: done + 1, loss, kept });
        }
        gradients.scale(1.0 / config.accumulate as f64);
        let rate = config.optimiser.learning_rate * config.rate.factor(done, config.steps);
        let gradient_norm =
            self.optimiser.update(self.learner.parameters(), &mut gradients, rate)?;
        if let (Some(decay), Some(averages)) = (config.ema, &mut self.averages) {
            // Few updates are averaged over few: diffusers' warm-up of the average.
            let updates = self.optimiser.updates() as f64;
            let decay = decay.min((1.0 + updates) / (10.0 + updates)) as f32;
            for (name, values) in self.learner.parameters().values()? {
                if let Some(averages) = averages.get_mut(&name) {
                    for (average, value) in averages.iter_mut().zip(values) {
                        *average += (1.0 - decay) * (value - *average);
                    }
                }
            }
        }
        Ok(Report {
            update: self.optimiser.updates(),
            updates: config.steps,
            loss,
            gradient_norm,
            learning_rate: rate,
            seconds: 0.0,
            seconds_left: 0.0,
        })
    }

    fn write_state(&mut self) -> Result<()> {
        if self.is_written {
            return Ok(());
        }
        let averages = self.averages.as_ref();
        let parameters = self.learner.parameters();
        state::write(&self.state, self.config, parameters, &self.optimiser, averages)?;
        self.is_written = true;
        Ok(())
    }

    fn finish(mut self, watch: &mut dyn Watch) -> Result<PathBuf> {
        if let Some(averages) = self.averages.take() {
            for (name, values) in averages {
                self.learner.parameters().set(&name, values)?;
            }
        }
        let config = self.config;
        let metadata = BTreeMap::from([
            ("ss_steps".to_owned(), config.steps.to_string()),
            ("ss_learning_rate".to_owned(), config.optimiser.learning_rate.to_string()),
        ]);
        self.learner.write(metadata)?;
        if let Err(error) = std::fs::remove_file(&self.state)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            watch.note(&format!("{} is needed no more: {error}", self.state.display()), true);
        }
        Ok(config.output.clone())
    }
}
