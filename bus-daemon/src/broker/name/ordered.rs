//! A name in the list of all names.

use std::sync::Arc;

/// Bytes of the beginning of a name that are kept beside it.
const BEGINNING: usize = 24;

/// In alphabetical order. Nearly always names are told apart by their beginnings: a list of tens of thousands is made and
/// searched without fetching the names themselves from memory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::broker) struct Ordered {
    /// Filled up with zeros, which no name has.
    beginning: [u8; BEGINNING],
    name: Arc<str>,
}

impl Ordered {
    pub(in crate::broker) fn new(name: &Arc<str>) -> Self {
        let mut beginning = [0; BEGINNING];
        let len = name.len().min(BEGINNING);
        beginning[..len].copy_from_slice(&name.as_bytes()[..len]);
        Self {
            beginning,
            name: name.clone(),
        }
    }

    pub(super) fn name(&self) -> &Arc<str> {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_alphabetical_whatever_names_share() {
        let long = "org.example.".repeat(3);
        let mut names = ["b", "a", "c", "a.b", "", "a.b.c"]
            .map(|end| format!("{long}{end}"))
            .to_vec();
        names.extend(
            [
                "a.b",
                "org.example.N10",
                "org.example.N9",
                "org.example.N",
                "a.a",
                "a",
                "a-b",
            ]
            .map(String::from),
        );
        let mut ordered: Vec<Ordered> = names
            .iter()
            .map(|name| Ordered::new(&Arc::from(&**name)))
            .collect();
        ordered.sort_unstable();
        names.sort_unstable();
        assert!(
            ordered
                .iter()
                .map(|one| &**one.name())
                .eq(names.iter().map(|name| &**name))
        );
    }
}
