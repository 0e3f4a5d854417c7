//! The threads that a node library computes with: rayon's pool, started before anything needs it, with as many threads as
//! can be had.
//!
//! Rayon starts its pool when it is first used and panics where a thread cannot be started (a limit on processes), then and
//! at every later use. And it believes whatever `RAYON_NUM_THREADS` says.

use std::num::NonZero;
use std::sync::mpsc::channel;
use std::thread;

use rayon::ThreadPoolBuilder;

/// More threads than this for each processor only wait for each other.
const FOR_EACH_PROCESSOR: usize = 4;

/// Starts the pool; the second call does nothing. Returns a line to tell where there are fewer threads than were wanted.
pub fn start() -> Option<String> {
    let variable = std::env::var("RAYON_NUM_THREADS").ok();
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let (wanted, told) = wanted(variable.as_deref(), processors);
    let count = startable(wanted);
    let pool = match count {
        // The pool's only thread is the one that calls the library.
        0 => ThreadPoolBuilder::new().num_threads(1).use_current_thread(),
        count => ThreadPoolBuilder::new().num_threads(count),
    };
    // An error: there is a pool already, of the program that linked this crate.
    pool.build_global().ok()?;
    match count {
        0 => Some("no thread can be started here, so that one alone computes".to_owned()),
        count if count < wanted => Some(format!(
            "only {count} of {wanted} threads can be started here, so that those compute"
        )),
        _ => told,
    }
}

/// How many threads there should be, and a line to tell where that is not what the variable says.
fn wanted(variable: Option<&str>, processors: usize) -> (usize, Option<String>) {
    let most = FOR_EACH_PROCESSOR.saturating_mul(processors);
    // What is no number, and 0, mean as many as there are processors, as rayon has it.
    let asked = variable.and_then(|text| text.parse::<usize>().ok()).filter(|count| *count > 0);
    match asked {
        None => (processors, None),
        Some(count) if count <= most => (count, None),
        Some(count) => {
            let told = format!(
                "RAYON_NUM_THREADS asks for {count} threads; {most} compute, {FOR_EACH_PROCESSOR} for \
                 each processor"
            );
            (most, Some(told))
        }
    }
}

/// How many of `wanted` threads can be there at once: they are started, and end again.
fn startable(wanted: usize) -> usize {
    let (hold, held) = channel::<()>();
    let held = std::sync::Arc::new(std::sync::Mutex::new(held));
    let mut threads = Vec::new();
    while threads.len() < wanted {
        let held = held.clone();
        // Each waits until `hold` is gone; none sends.
        let wait = move || drop(held.lock().map(|held| held.recv()));
        match thread::Builder::new().spawn(wait) {
            Ok(thread) => threads.push(thread),
            Err(_) => break,
        }
    }
    drop(hold);
    let count = threads.len();
    threads.into_iter().for_each(|thread| drop(thread.join()));
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absurd_number_is_cut_and_told() {
        assert_eq!(wanted(None, 6), (6, None));
        assert_eq!(wanted(Some("3"), 6), (3, None));
        assert_eq!(wanted(Some("0"), 6), (6, None));
        assert_eq!(wanted(Some("many"), 6), (6, None));
        let (count, told) = wanted(Some("10000"), 6);
        assert_eq!(count, 24);
        assert!(told.unwrap().starts_with("RAYON_NUM_THREADS asks for 10000 threads; 24 compute"));
    }

    #[test]
    fn threads_are_started_and_end() {
        assert_eq!(startable(3), 3);
        assert_eq!(startable(0), 0);
    }

    #[test]
    fn the_pool_is_started_once() {
        start();
        assert_eq!(start(), None);
        assert!(rayon::current_num_threads() >= 1);
    }
}
