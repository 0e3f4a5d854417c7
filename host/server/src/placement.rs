//! Which of the jobs that wait a worker takes: one whose models it holds already, as long as nobody waits too
//! long for that.
//!
//! A job is *due* when as many jobs were taken since its submission as waited in front of it then, and
//! [`PASSES`] more: it was passed over that often, and the next worker that can takes it. So every job begins after at
//! most so many others as stood before it, and `PASSES`, whatever models they need. Jobs that were put in front
//! are never passed over.

use std::collections::HashSet;

/// How often a job may be passed over.
pub const PASSES: i64 = 64;

/// A job that waits.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Candidate {
    pub id: String,
    /// Below 0 where it was put in front.
    pub number: f64,
    /// See [`crate::needs`].
    pub kind: String,
    /// The models that it uses.
    pub models: Vec<String>,
    /// When as many jobs as this were taken, it is next.
    pub due: i64,
}

/// The candidates in the order in which a worker that holds `held` is to take them, as places in `candidates`,
/// which are in the order of their numbers. `claims` is how many jobs were taken so far.
pub fn rank(candidates: &[Candidate], held: &HashSet<String>, claims: i64) -> Vec<usize> {
    let score = |candidate: &Candidate| {
        if candidate.number < 0.0 {
            return (0, 0);
        }
        if candidate.due <= claims {
            return (1, 0);
        }
        let missing = candidate.models.iter().filter(|model| !held.contains(*model)).count();
        // One that needs no model can be done by anybody, and costs nobody its models.
        (2, missing)
    };
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    // Stable: equal ones in their order.
    order.sort_by_key(|at| score(&candidates[*at]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(id: &str, models: &[&str], due: i64) -> Candidate {
        let models = models.iter().map(|model| (*model).to_owned()).collect();
        Candidate { id: id.into(), models, due, ..Candidate::default() }
    }

    fn order(candidates: &[Candidate], held: &[&str], claims: i64) -> Vec<String> {
        let held = held.iter().map(|model| (*model).to_owned()).collect();
        let ranked = rank(candidates, &held, claims);
        ranked.into_iter().map(|at| candidates[at].id.clone()).collect()
    }

    #[test]
    fn what_is_held_comes_first_and_what_is_due_before_it() {
        let jobs = [
            candidate("a", &["x"], 70),
            candidate("b", &["y"], 71),
            candidate("c", &["y", "z"], 72),
        ];
        assert_eq!(order(&jobs, &["y", "z"], 0), ["b", "c", "a"]);
        assert_eq!(order(&jobs, &["y"], 0), ["b", "a", "c"], "as few as possible are read anew");
        assert_eq!(order(&jobs, &[], 0), ["a", "b", "c"]);
        assert_eq!(order(&jobs, &["y", "z"], 70), ["a", "b", "c"], "a is due");
        let mut front = candidate("front", &["x"], 99);
        front.number = -3.0;
        let jobs = [front, candidate("due", &["y"], 1)];
        assert_eq!(order(&jobs, &["y"], 50), ["front", "due"]);
    }
}
