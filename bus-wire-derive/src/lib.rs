//! Derives `Type`, `Encode` and `Decode` of `bus-wire`: see that crate, which exports them with its feature `derive`.
//!
//! | Rust | D-Bus |
//! |---|---|
//! | a struct, with named fields or without | STRUCT of its fields |
//! | a struct with one field that has no name | what the field is |
//! | a struct with `#[bus(dict)]` | ARRAY of DICT_ENTRY of STRING and VARIANT, `a{sv}` |
//! | an enum without fields and with `#[repr(u8)]` (or another number) | that number |
//! | an enum without fields | STRING: the name of its variant |
//!
//! | attribute | on | |
//! |---|---|---|
//! | `#[bus(crate = "path")]` | type | where to find what `bus_wire` exports |
//! | `#[bus(dict)]` | struct | a dict; fields that are an `Option` are left out when `None`, unknown keys are passed over |
//! | `#[bus(rename_all = "PascalCase")]` | dict, enum | also `camelCase`, `snake_case`, `kebab-case`, `SCREAMING_SNAKE_CASE` |
//! | `#[bus(default)]` | dict, or a field of it | what is not there is `Default::default()` |
//! | `#[bus(rename = "key")]` | field of a dict, variant | its name in D-Bus |
//! | `#[bus(rest)]` | field of a dict | a map that takes what no other field does |

mod attributes;
mod expand;
mod shape;

use proc_macro::TokenStream;
use quote::quote;
use syn::{DeriveInput, parse_macro_input};

use shape::Input;

/// Where a crate finds what the expansions use, unless it says so itself.
fn bus_wire() -> syn::Path {
    syn::parse_quote!(::bus_wire)
}

/// The same for who uses `bus-client` and does not depend on `bus-wire`.
fn bus_client() -> syn::Path {
    syn::parse_quote!(::bus_client::__private::bus_wire)
}

fn derive(
    input: TokenStream,
    default: fn() -> syn::Path,
    expand: fn(&Input) -> proc_macro2::TokenStream,
) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    match Input::new(input, default) {
        Ok(input) => {
            let tokens = expand(&input);
            quote!(#[automatically_derived] #tokens).into()
        }
        Err(error) => error.into_compile_error().into(),
    }
}

/// Derives the D-Bus type: see the [crate](self).
#[proc_macro_derive(Type, attributes(bus))]
pub fn derive_type(input: TokenStream) -> TokenStream {
    derive(input, bus_wire, expand::expand_type)
}

/// Derives the writing: see the [crate](self).
#[proc_macro_derive(Encode, attributes(bus))]
pub fn derive_encode(input: TokenStream) -> TokenStream {
    derive(input, bus_wire, expand::expand_encode)
}

/// Derives the reading: see the [crate](self).
#[proc_macro_derive(Decode, attributes(bus))]
pub fn derive_decode(input: TokenStream) -> TokenStream {
    derive(input, bus_wire, expand::expand_decode)
}

/// [`Type`](derive_type), for `bus-client` to export.
#[doc(hidden)]
#[proc_macro_derive(ClientType, attributes(bus))]
pub fn derive_client_type(input: TokenStream) -> TokenStream {
    derive(input, bus_client, expand::expand_type)
}

/// [`Encode`](derive_encode), for `bus-client` to export.
#[doc(hidden)]
#[proc_macro_derive(ClientEncode, attributes(bus))]
pub fn derive_client_encode(input: TokenStream) -> TokenStream {
    derive(input, bus_client, expand::expand_encode)
}

/// [`Decode`](derive_decode), for `bus-client` to export.
#[doc(hidden)]
#[proc_macro_derive(ClientDecode, attributes(bus))]
pub fn derive_client_decode(input: TokenStream) -> TokenStream {
    derive(input, bus_client, expand::expand_decode)
}
