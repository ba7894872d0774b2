//! The modules of this crate depend on each other in one direction: no circle, so there is a ground floor and arrows
//! point down.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Each module at the top of `src/`, with the modules that it names and one place where it does.
type Graph = BTreeMap<String, BTreeMap<String, String>>;

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Tests may look at whatever they need.
fn is_test(path: &Path) -> bool {
    path.iter()
        .any(|part| part == "tests" || part == "tests.rs" || part == "mirror.rs" || part == "fuzz.rs")
}

/// The part of a file that is not its `mod tests { ... }` at the end.
fn without_tests(text: &str) -> &str {
    text.find("#[cfg(test)]\nmod tests {")
        .map_or(text, |end| &text[..end])
}

/// What one line of code names after `crate::`, also in a group of imports.
fn named(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let mut all = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let parts: Vec<&str> = match rest.strip_prefix('{') {
            Some(group) => group.split(',').collect(),
            None => vec![rest],
        };
        for part in parts {
            let name: String = part
                .trim()
                .chars()
                .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                .collect();
            all.push(name);
        }
    }
    all
}

fn graph(source: &Path) -> Graph {
    let mut files = Vec::new();
    sources(source, &mut files);
    let module = |path: &Path| -> Option<String> {
        let first = path.strip_prefix(source).ok()?.iter().next()?.to_str()?;
        let name = first.trim_end_matches(".rs");
        (name != "lib" && name != "main").then(|| name.to_owned())
    };
    let modules: BTreeSet<String> = files.iter().filter_map(|path| module(path)).collect();
    let mut graph = Graph::new();
    for path in files.iter().filter(|path| !is_test(path)) {
        let Some(from) = module(path) else { continue };
        let text = std::fs::read_to_string(path).unwrap();
        for (number, line) in without_tests(&text).lines().enumerate() {
            for to in named(line)
                .into_iter()
                .filter(|to| *to != from && modules.contains(to))
            {
                let place = format!("{}:{}", path.display(), number + 1);
                graph.entry(from.clone()).or_default().entry(to).or_insert(place);
            }
        }
    }
    graph
}

/// A way from `module` back to itself, as places in the sources.
fn circle(
    graph: &Graph,
    module: &str,
    way: &mut Vec<String>,
    done: &mut BTreeSet<String>,
) -> Option<Vec<String>> {
    if let Some(start) = way.iter().position(|other| other == module) {
        let ring = way[start..].iter().cloned().chain([module.to_owned()]);
        return Some(ring.collect());
    }
    if done.contains(module) {
        return None;
    }
    way.push(module.to_owned());
    for to in graph.get(module).into_iter().flat_map(BTreeMap::keys) {
        if let Some(found) = circle(graph, to, way, done) {
            return Some(found);
        }
    }
    way.pop();
    done.insert(module.to_owned());
    None
}

fn any_circle(graph: &Graph) -> Option<Vec<String>> {
    let mut done = BTreeSet::new();
    graph
        .keys()
        .find_map(|module| circle(graph, module, &mut Vec::new(), &mut done))
}

#[test]
fn the_modules_depend_on_each_other_in_one_direction() {
    let graph = graph(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert!(graph.len() > 5, "the sources were read: {graph:?}");
    if let Some(ring) = any_circle(&graph) {
        let places = ring
            .windows(2)
            .map(|pair| format!("{} uses {} in {}", pair[0], pair[1], graph[&pair[0]][&pair[1]]));
        panic!("modules in a circle:\n{}", places.collect::<Vec<_>>().join("\n"));
    }
}

#[test]
fn the_ground_floor_stands_on_nothing() {
    let graph = graph(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    assert_eq!(graph.get("os"), None);
}

#[test]
fn a_circle_is_found() {
    let edge = |to: &str| BTreeMap::from([(to.to_owned(), String::new())]);
    let mut graph = Graph::from([("a".into(), edge("b")), ("b".into(), edge("c"))]);
    assert_eq!(any_circle(&graph), None);
    graph.insert("c".into(), edge("a"));
    assert_eq!(any_circle(&graph).map(|ring| ring.len()), Some(4));
    assert_eq!(
        named("use crate::{broker::Broker, os}; // crate::keeper"),
        ["broker", "os"]
    );
}
