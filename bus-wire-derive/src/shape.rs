//! What a type is in D-Bus.

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::{
    Attribute, Data, DataEnum, DeriveInput, Error, Fields, Generics, Ident, Index, Member, Path, Result, Type,
};

use crate::attributes::{Case, PartAttributes, TypeAttributes};

/// A type that something is derived for.
pub(crate) struct Input {
    pub(crate) krate: Path,
    pub(crate) name: Ident,
    pub(crate) generics: Generics,
    pub(crate) shape: Shape,
}

pub(crate) enum Shape {
    /// STRUCT
    Struct(Vec<Field>),
    /// What its only field is.
    Newtype(Field),
    /// `a{sv}`
    Dict {
        fields: Vec<DictField>,
        rest: Option<Field>,
    },
    /// A number of the type, for each variant.
    Number(Ident, Vec<Ident>),
    /// STRING, for each variant.
    Text(Vec<(Ident, String)>),
}

pub(crate) struct Field {
    pub(crate) member: Member,
    pub(crate) ty: Type,
}

pub(crate) struct DictField {
    pub(crate) field: Field,
    pub(crate) key: String,
    /// Whether there is a value for it where the dict has none.
    pub(crate) default: bool,
}

impl Input {
    pub(crate) fn new(input: DeriveInput, default: fn() -> Path) -> Result<Self> {
        let attributes = TypeAttributes::new(&input.attrs)?;
        let span = input.ident.span();
        let shape = match input.data {
            Data::Struct(data) if attributes.dict.is_some() => dict(&attributes, data.fields, span)?,
            Data::Struct(data) => {
                attributes.only_of("a struct with #[bus(dict)]", true)?;
                structure(data.fields, span)?
            }
            Data::Enum(data) => {
                if let Some(span) = attributes.dict.or(attributes.default) {
                    return Err(Error::new(span, "only a struct can be a dict"));
                }
                enumeration(&attributes, &input.attrs, data, span)?
            }
            Data::Union(_) => return Err(Error::new(span, "a union has no D-Bus type")),
        };
        Ok(Self {
            krate: attributes.krate.unwrap_or_else(default),
            name: input.ident,
            generics: input.generics,
            shape,
        })
    }
}

impl TypeAttributes {
    /// `default` and `rename_all` mean nothing here.
    fn only_of(&self, what: &str, rename_all: bool) -> Result<()> {
        let rename_all = self.rename_all.filter(|_| rename_all).map(|(_, span)| span);
        match self.default.or(rename_all) {
            Some(span) => Err(Error::new(span, format!("this is for {what}"))),
            None => Ok(()),
        }
    }
}

fn members(fields: Fields) -> Result<Vec<(Field, PartAttributes)>> {
    let member = |(index, field): (usize, syn::Field)| {
        let attributes = PartAttributes::new(&field.attrs)?;
        let member = match field.ident {
            Some(name) => Member::Named(name),
            None => Member::Unnamed(Index {
                index: index as u32,
                span: field.ty.span(),
            }),
        };
        Ok((Field { member, ty: field.ty }, attributes))
    };
    fields.into_iter().enumerate().map(member).collect()
}

fn structure(fields: Fields, span: Span) -> Result<Shape> {
    let is_unnamed = matches!(fields, Fields::Unnamed(_));
    let mut all = Vec::new();
    for (field, attributes) in members(fields)? {
        attributes.none("the field of a struct that is no dict")?;
        all.push(field);
    }
    match all.len() {
        0 => Err(Error::new(
            span,
            "a struct of D-Bus has at least one field (specification, Container types)",
        )),
        1 if is_unnamed => Ok(Shape::Newtype(all.remove(0))),
        _ => Ok(Shape::Struct(all)),
    }
}

fn dict(attributes: &TypeAttributes, fields: Fields, span: Span) -> Result<Shape> {
    if !matches!(fields, Fields::Named(_)) {
        return Err(Error::new(span, "the fields of a dict have names"));
    }
    let (mut all, mut rest): (Vec<DictField>, Option<Field>) = (Vec::new(), None);
    for (field, part) in members(fields)? {
        if let Some(span) = part.rest {
            if part.rename.is_some() || part.default.is_some() || rest.replace(field).is_some() {
                return Err(Error::new(
                    span,
                    "one field takes the rest, and has no other attribute",
                ));
            }
            continue;
        }
        let key = key(attributes, &part, &name_of(&field.member));
        if all.iter().any(|known| known.key == key) {
            return Err(Error::new(
                field.member.span(),
                format!("there is a key {key:?} already"),
            ));
        }
        all.push(DictField {
            field,
            key,
            default: part.default.is_some() || attributes.default.is_some(),
        });
    }
    Ok(Shape::Dict { fields: all, rest })
}

fn name_of(member: &Member) -> String {
    match member {
        Member::Named(name) => {
            let name = name.to_string();
            name.strip_prefix("r#")
                .map_or_else(|| name.clone(), str::to_owned)
        }
        Member::Unnamed(index) => index.index.to_string(),
    }
}

/// The name in D-Bus.
fn key(attributes: &TypeAttributes, part: &PartAttributes, name: &str) -> String {
    match (&part.rename, attributes.rename_all) {
        (Some(text), _) => text.value(),
        (None, Some((case, _))) => Case::apply(case, name),
        (None, None) => name.to_owned(),
    }
}

fn enumeration(attributes: &TypeAttributes, all: &[Attribute], data: DataEnum, span: Span) -> Result<Shape> {
    let number = number(all)?;
    let mut variants = Vec::new();
    for variant in data.variants {
        if !matches!(variant.fields, Fields::Unit) {
            return Err(Error::new(
                variant.span(),
                "a D-Bus type has no variants with fields",
            ));
        }
        let part = PartAttributes::new(&variant.attrs)?;
        if let Some(span) = part.default.or(part.rest) {
            return Err(Error::new(span, "this is for the fields of a dict"));
        }
        if number.is_some() {
            part.none("the variant of an enum that is a number")?;
        }
        let text = key(attributes, &part, &variant.ident.to_string());
        if variants.iter().any(|(_, known)| *known == text) {
            return Err(Error::new(
                variant.span(),
                format!("there is a variant {text:?} already"),
            ));
        }
        variants.push((variant.ident, text));
    }
    if variants.is_empty() {
        return Err(Error::new(span, "an enum without variants has no values"));
    }
    Ok(match number {
        Some(number) => {
            attributes.only_of("an enum without a repr", true)?;
            Shape::Number(number, variants.into_iter().map(|(name, _)| name).collect())
        }
        None => Shape::Text(variants),
    })
}

/// The type in `#[repr(..)]`.
fn number(attributes: &[Attribute]) -> Result<Option<Ident>> {
    const NUMBERS: [&str; 7] = ["u8", "i16", "u16", "i32", "u32", "i64", "u64"];
    let mut number = None;
    for attribute in attributes
        .iter()
        .filter(|attribute| attribute.path().is_ident("repr"))
    {
        attribute.parse_nested_meta(|meta| {
            let name = meta.path.require_ident()?;
            if NUMBERS.iter().any(|known| name == known) {
                number = Some(name.clone());
                return Ok(());
            }
            Err(meta.error(format!(
                "this repr has no D-Bus type; expected one of {}",
                NUMBERS.join(", ")
            )))
        })?;
    }
    Ok(number)
}
