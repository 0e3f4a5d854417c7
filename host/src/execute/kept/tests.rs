use super::*;
use proptest::prelude::*;
use serde_json::json;
use std::collections::HashSet;

/// Pictures of different sizes, some of which lie in lists and maps that share them.
fn values() -> Vec<Value> {
    let picture = |side: usize| {
        Value::tensor_f32(&[1, side as i64, side as i64, 1], &vec![0.0; side * side]).unwrap()
    };
    let pictures: Vec<Value> = (1..5).map(picture).collect();
    let map = Value::map(vec![("picture".to_owned(), pictures[1].clone())]);
    let list = Value::list(vec![pictures[0].clone(), map.clone(), pictures[0].clone()]);
    pictures.into_iter().chain([map, list, Value::integer(7)]).collect()
}

fn keys(count: u8) -> Vec<Key> {
    (0..count).map(|number| serde_json::from_value(json!(vec![number; 16])).unwrap()).collect()
}

#[derive(Clone, Debug)]
enum Act {
    /// These values, or none in a place, under a key.
    Insert(usize, Vec<Option<usize>>),
    Remove(usize),
    /// The first value of each result stays, and of some keys nothing.
    Retain(HashSet<usize>),
    Clear,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let values = prop::collection::vec(prop::option::of(0usize..7), 0..4);
    let act = prop_oneof![
        6 => (0usize..6, values).prop_map(|(key, values)| Act::Insert(key, values)),
        3 => (0usize..6).prop_map(Act::Remove),
        1 => prop::collection::hash_set(0usize..6, 0..6).prop_map(Act::Retain),
        1 => Just(Act::Clear),
    ];
    prop::collection::vec(act, 0..40)
}

proptest! {
    /// What is counted on the way is what counting all of it at the end comes to.
    #[test]
    fn what_is_counted_is_what_is_there(acts in acts()) {
        let (values, keys) = (values(), keys(6));
        let mut kept = Kept::default();
        for act in acts {
            match act {
                Act::Insert(key, of) => {
                    let of: Results = of.iter().map(|at| at.map(|at| values[at].clone())).collect();
                    kept.insert(keys[key], of);
                }
                Act::Remove(key) => kept.remove(&keys[key]),
                Act::Retain(without) => kept.retain(|key, results| {
                    let at = keys.iter().position(|own| own == key)?;
                    let first = results.iter().take(1).cloned().collect();
                    (!without.contains(&at)).then_some(first)
                }),
                Act::Clear => kept.clear(),
            }
            let mut counted: HashMap<usize, (usize, u64)> = HashMap::new();
            for (_, _, of) in kept.by_result() {
                for identity in of {
                    counted.entry(*identity).or_default().0 += 1;
                }
            }
            let all = keys.iter().filter_map(|key| kept.get(key)).flat_map(|of| of.iter().flatten());
            let there: HashMap<usize, u64> = tensors(all).collect();
            prop_assert_eq!(kept.bytes(), there.values().sum::<u64>());
            prop_assert_eq!(kept.tensors().len(), there.len());
            for (identity, &(count, bytes)) in kept.tensors() {
                prop_assert_eq!(Some(&bytes), there.get(identity));
                prop_assert_eq!(Some(count), counted.get(identity).map(|of| of.0));
            }
        }
    }
}
