//! The public interface of the libraries for clients, as a file that is reviewed: `api.txt` of each crate.
//!
//! It is read from the sources: each `pub` item (the lint `unreachable_pub` sees to it that this means what others can reach), each
//! public method and each trait that is implemented, without documentation and bodies. A change of the interface is a change of
//! that file: `BUS_API=write cargo test -p bus-client --test api` writes it anew.
#![allow(clippy::unwrap_used, clippy::wildcard_enum_match_arm, missing_docs)]

use std::collections::BTreeSet;
use std::path::Path;

use quote::{ToTokens, quote};
use syn::{Fields, ImplItem, Item, Visibility};

/// The lines of one crate.
#[derive(Default)]
struct Api {
    lines: BTreeSet<String>,
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

fn is_hidden(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let text = attribute.to_token_stream().to_string();
        text.contains("cfg (test)") || text.contains("doc (hidden)")
    })
}

impl Api {
    fn add(&mut self, module: &str, tokens: impl ToTokens) {
        let text = tokens.to_token_stream().to_string();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        self.lines.insert(format!("{module}: {text}"));
    }

    fn directory(&mut self, directory: &Path, module: &str) {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let path = entry.path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let name = match &*stem {
                "lib" | "mod" => module.to_owned(),
                stem => format!("{module}::{stem}"),
            };
            if path.is_dir() {
                self.directory(&path, &name);
            } else if path.extension().is_some_and(|extension| extension == "rs") && stem != "tests" {
                let file = syn::parse_file(&std::fs::read_to_string(&path).unwrap()).unwrap();
                self.items(&file.items, &name);
            }
        }
    }

    fn items(&mut self, items: &[Item], module: &str) {
        for item in items {
            self.item(item, module);
        }
    }

    fn item(&mut self, item: &Item, module: &str) {
        match item {
            Item::Mod(inner) if !is_hidden(&inner.attrs) => {
                let name = format!("{module}::{}", inner.ident);
                if is_public(&inner.vis) {
                    let ident = &inner.ident;
                    self.add(module, quote!(pub mod #ident));
                }
                if let Some((_, items)) = &inner.content {
                    self.items(items, &name);
                }
            }
            Item::Use(used) if is_public(&used.vis) => {
                let tree = &used.tree;
                self.add(module, quote!(pub use #tree));
            }
            Item::Const(item) if is_public(&item.vis) => {
                let (ident, ty) = (&item.ident, &item.ty);
                self.add(module, quote!(pub const #ident: #ty));
            }
            Item::Type(item) if is_public(&item.vis) => {
                let (ident, generics, ty) = (&item.ident, &item.generics, &item.ty);
                self.add(module, quote!(pub type #ident #generics = #ty));
            }
            Item::Fn(item) if is_public(&item.vis) => {
                let signature = &item.sig;
                self.add(module, quote!(pub #signature));
            }
            Item::Struct(item) if is_public(&item.vis) => self.structure(item, module),
            Item::Enum(item) if is_public(&item.vis) => {
                let (ident, generics) = (&item.ident, &item.generics);
                let non_exhaustive = attribute(&item.attrs, "non_exhaustive");
                self.add(module, quote!(#non_exhaustive pub enum #ident #generics));
                for variant in &item.variants {
                    let (name, fields) = (&variant.ident, plain(&variant.fields));
                    self.add(module, quote!(#ident::#name #fields));
                }
                self.derives(&item.attrs, ident, module);
            }
            Item::Trait(item) if is_public(&item.vis) => {
                let (ident, generics, bounds) = (&item.ident, &item.generics, &item.supertraits);
                self.add(module, quote!(pub trait #ident #generics: #bounds));
                for item in &item.items {
                    let mut item = item.clone();
                    if let syn::TraitItem::Fn(item) = &mut item {
                        let is_provided = item.default.take().is_some();
                        let signature = &item.sig;
                        let provided = is_provided.then(|| quote!({}));
                        self.add(module, quote!(#ident::#signature #provided));
                    }
                }
            }
            Item::Impl(item) if !is_hidden(&item.attrs) => self.implementation(item, module),
            _ => {}
        }
    }

    fn structure(&mut self, item: &syn::ItemStruct, module: &str) {
        let (ident, generics) = (&item.ident, &item.generics);
        let non_exhaustive = attribute(&item.attrs, "non_exhaustive");
        self.add(module, quote!(#non_exhaustive pub struct #ident #generics));
        for (index, field) in item.fields.iter().enumerate() {
            if is_public(&field.vis) {
                let name = field.ident.as_ref().map(ToString::to_string);
                let name = name.unwrap_or_else(|| index.to_string());
                let ty = &field.ty;
                self.add(module, quote!(#ident #name: #ty));
            }
        }
        self.derives(&item.attrs, ident, module);
    }

    fn derives(&mut self, attributes: &[syn::Attribute], ident: &syn::Ident, module: &str) {
        for attribute in attributes {
            if attribute.path().is_ident("derive") {
                let syn::Meta::List(list) = &attribute.meta else {
                    continue;
                };
                let derived = &list.tokens;
                self.add(module, quote!(#ident: #derived));
            }
        }
    }

    fn implementation(&mut self, item: &syn::ItemImpl, module: &str) {
        let (generics, of) = (&item.generics, &item.self_ty);
        let bounds = &generics.where_clause;
        if let Some((path, _)) = &item.trait_ {
            self.add(module, quote!(impl #generics #path for #of #bounds));
            return;
        }
        for item in &item.items {
            match item {
                ImplItem::Fn(method) if is_public(&method.vis) => {
                    let signature = &method.sig;
                    self.add(module, quote!(#of::#signature));
                }
                ImplItem::Const(constant) if is_public(&constant.vis) => {
                    let (ident, ty) = (&constant.ident, &constant.ty);
                    self.add(module, quote!(#of::#ident: #ty));
                }
                _ => {}
            }
        }
    }
}

/// The fields of a variant, without what is written about them.
fn plain(fields: &Fields) -> Fields {
    let mut fields = fields.clone();
    fields.iter_mut().for_each(|field| field.attrs.clear());
    fields
}

fn attribute<'a>(attributes: &'a [syn::Attribute], name: &str) -> Option<&'a syn::Attribute> {
    attributes
        .iter()
        .find(|attribute| attribute.path().is_ident(name))
}

fn check(name: &str) {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut api = Api::default();
    api.directory(&workspace.join(name).join("src"), &name.replace('-', "_"));
    assert!(
        api.lines.len() > 100,
        "the sources of {name} are not where they were"
    );
    let file = workspace.join(name).join("api.txt");
    let text: String = api.lines.iter().map(|line| format!("{line}\n")).collect();
    if std::env::var("BUS_API").as_deref() == Ok("write") {
        std::fs::write(&file, text).unwrap();
        return;
    }
    let known = std::fs::read_to_string(&file).unwrap_or_default();
    let known: BTreeSet<&str> = known.lines().collect();
    let new: BTreeSet<&str> = api.lines.iter().map(|line| &**line).collect();
    let gone = known.difference(&new).map(|line| format!("- {line}\n"));
    let come = new.difference(&known).map(|line| format!("+ {line}\n"));
    let changes: String = gone.chain(come).collect();
    assert!(
        changes.is_empty(),
        "the public interface of {name} is another. If that is meant: BUS_API=write cargo test -p bus-client --test api\n{changes}"
    );
}

#[test]
fn of_bus_client() {
    check("bus-client");
}

#[test]
fn of_bus_wire() {
    check("bus-wire");
}
