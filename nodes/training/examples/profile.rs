//! What each kernel takes of a training's updates, after the first, which warms up:
//!
//! ```sh
//! cargo run --release -p kosmograph-training --example profile -- CONFIG.json
//! ```
//!
//! CONFIG is one stage as `kosmograph train` takes it, of three updates or so.

use std::path::Path;
use std::time::Duration;

use kosmograph_kernels::profile::{forget, profile, table};
use kosmograph_training::{Config, Report, Result, Watch, train};

#[derive(Default)]
struct Told {
    seconds: f64,
}

impl Watch for Told {
    fn update(&mut self, report: &Report) -> Result<()> {
        println!("update {}: {:.2} s, loss {:.9}", report.update, report.seconds, report.loss);
        if report.update == 1 {
            forget();
        } else {
            self.seconds += report.seconds;
        }
        Ok(())
    }

    fn note(&mut self, sentence: &str, _: bool) {
        println!("{sentence}");
    }

    fn made(&mut self, _: &Path) {}

    fn seen(&mut self, _: usize, _: usize) {}

    fn stopped(&self) -> bool {
        false
    }
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("the configuration of a training is missing")?;
    let path = Path::new(&path);
    let folder = path.parent().unwrap_or(Path::new("."));
    let config = Config::read(&std::fs::read_to_string(path)?, folder)?;
    let mut told = Told::default();
    let (made, calls) = profile(|| train(&config, &mut told));
    println!("made {}", made?.display());
    print!("{}", table(&calls, Duration::from_secs_f64(told.seconds)));
    Ok(())
}
