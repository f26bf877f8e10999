//! The search for a circle.

use std::collections::{BTreeMap, BTreeSet};

/// The first circle of what uses what, with its first member once more at its end.
pub fn find(uses: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    uses.keys().find_map(|start| follow(uses, start, &mut Vec::new(), &mut done))
}

fn follow<'a>(
    uses: &'a BTreeMap<String, BTreeSet<String>>,
    module: &'a str,
    way: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<Vec<String>> {
    if let Some(at) = way.iter().position(|earlier| *earlier == module) {
        return Some(way[at..].iter().chain([&module]).map(ToString::to_string).collect());
    }
    if done.contains(module) {
        return None;
    }
    way.push(module);
    let found = uses.get(module).into_iter().flatten().find_map(|next| follow(uses, next, way, done));
    way.pop();
    done.insert(module);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn circle(edges: &[(&str, &str)]) -> Option<Vec<String>> {
        let mut uses = BTreeMap::<String, BTreeSet<String>>::new();
        for (from, to) in edges {
            uses.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        find(&uses)
    }

    #[test]
    fn a_circle_is_found_however_long_and_a_diamond_is_none() {
        assert_eq!(circle(&[("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]), None);
        let two = circle(&[("a", "b"), ("b", "c"), ("c", "b")]).unwrap();
        assert_eq!(two, ["b", "c", "b"]);
        let four = circle(&[("a", "b"), ("b", "c"), ("c", "d"), ("d", "a"), ("a", "x")]).unwrap();
        assert_eq!(four, ["a", "b", "c", "d", "a"]);
    }
}
