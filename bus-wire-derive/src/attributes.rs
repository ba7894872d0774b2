//! `#[bus(..)]`.

use proc_macro2::Span;
use syn::meta::ParseNestedMeta;
use syn::spanned::Spanned;
use syn::{Attribute, Error, LitStr, Path, Result};

/// Of a type.
#[derive(Default)]
pub(crate) struct TypeAttributes {
    pub(crate) krate: Option<Path>,
    pub(crate) dict: Option<Span>,
    pub(crate) default: Option<Span>,
    pub(crate) rename_all: Option<(Case, Span)>,
}

/// Of a field or a variant.
#[derive(Default)]
pub(crate) struct PartAttributes {
    pub(crate) rename: Option<LitStr>,
    pub(crate) default: Option<Span>,
    pub(crate) rest: Option<Span>,
}

/// How names in D-Bus are made of those in Rust.
#[derive(Clone, Copy)]
pub(crate) enum Case {
    Pascal,
    Camel,
    Snake,
    Kebab,
    Screaming,
}

const CASES: [(&str, Case); 5] = [
    ("PascalCase", Case::Pascal),
    ("camelCase", Case::Camel),
    ("snake_case", Case::Snake),
    ("kebab-case", Case::Kebab),
    ("SCREAMING_SNAKE_CASE", Case::Screaming),
];

impl Case {
    /// The words of a name in Rust, whether it is in snake case or in Pascal case, put together.
    pub(crate) fn apply(self, name: &str) -> String {
        let mut words: Vec<String> = Vec::new();
        for part in name.split('_').filter(|part| !part.is_empty()) {
            let mut word = String::new();
            for letter in part.chars() {
                if letter.is_uppercase() && !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                word.extend(letter.to_lowercase());
            }
            words.push(word);
        }
        let capital = |word: &String| {
            let mut letters = word.chars();
            let first = letters.next().into_iter().flat_map(char::to_uppercase);
            first.chain(letters).collect::<String>()
        };
        match self {
            Self::Pascal => words.iter().map(capital).collect(),
            Self::Camel => {
                let (first, rest) = words.split_at(words.len().min(1));
                first.iter().cloned().chain(rest.iter().map(capital)).collect()
            }
            Self::Snake => words.join("_"),
            Self::Kebab => words.join("-"),
            Self::Screaming => words.join("_").to_uppercase(),
        }
    }
}

fn each(attributes: &[Attribute], mut take: impl FnMut(&ParseNestedMeta<'_>) -> Result<bool>) -> Result<()> {
    for attribute in attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("bus"))
    {
        attribute.parse_nested_meta(|meta| {
            if take(&meta)? {
                Ok(())
            } else {
                Err(meta.error("there is no such attribute of `bus` here"))
            }
        })?;
    }
    Ok(())
}

impl TypeAttributes {
    pub(crate) fn new(attributes: &[Attribute]) -> Result<Self> {
        let mut all = Self::default();
        each(attributes, |meta| {
            let span = meta.path.span();
            if meta.path.is_ident("crate") {
                all.krate = Some(meta.value()?.parse::<LitStr>()?.parse()?);
            } else if meta.path.is_ident("dict") {
                all.dict = Some(span);
            } else if meta.path.is_ident("default") {
                all.default = Some(span);
            } else if meta.path.is_ident("rename_all") {
                let text: LitStr = meta.value()?.parse()?;
                let case = CASES.iter().find(|(name, _)| *name == text.value());
                let (_, case) = case.ok_or_else(|| {
                    let names = CASES.map(|(name, _)| name).join(", ");
                    Error::new(text.span(), format!("expected one of {names}"))
                })?;
                all.rename_all = Some((*case, span));
            } else {
                return Ok(false);
            }
            Ok(true)
        })?;
        Ok(all)
    }
}

impl PartAttributes {
    pub(crate) fn new(attributes: &[Attribute]) -> Result<Self> {
        let mut all = Self::default();
        each(attributes, |meta| {
            let span = meta.path.span();
            if meta.path.is_ident("rename") {
                all.rename = Some(meta.value()?.parse()?);
            } else if meta.path.is_ident("default") {
                all.default = Some(span);
            } else if meta.path.is_ident("rest") {
                all.rest = Some(span);
            } else {
                return Ok(false);
            }
            Ok(true)
        })?;
        Ok(all)
    }

    /// None of them can be on this.
    pub(crate) fn none(&self, what: &str) -> Result<()> {
        let rename = self.rename.as_ref().map(LitStr::span);
        match rename.or(self.default).or(self.rest) {
            Some(span) => Err(Error::new(span, format!("{what} has no attributes of `bus`"))),
            None => Ok(()),
        }
    }
}
