//! What is derived. Nothing in it depends on which names mean what where it is used.

use proc_macro2::{Span, TokenStream};
use quote::quote;
use syn::{GenericParam, Generics, Lifetime, LifetimeParam, Member, Path, TypeParamBound, parse_quote};

use crate::shape::{DictField, Field, Input, Shape};

/// With this bound on all its type parameters.
fn bounded(generics: &Generics, bound: &TypeParamBound) -> Generics {
    let mut generics = generics.clone();
    for parameter in generics.type_params_mut() {
        parameter.bounds.push(bound.clone());
    }
    generics
}

pub(crate) fn expand_type(input: &Input) -> TokenStream {
    let Input { krate, name, .. } = input;
    let generics = bounded(&input.generics, &parse_quote!(#krate::Type));
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let ty = match &input.shape {
        Shape::Struct(fields) => {
            let types = fields.iter().map(|field| &field.ty);
            quote!(&#krate::Ty::Struct(&[#(<#types as #krate::Type>::TY),*]))
        }
        Shape::Newtype(Field { ty, .. }) => quote!(<#ty as #krate::Type>::TY),
        Shape::Dict { .. } => quote!(&#krate::Ty::Dict(&#krate::Ty::Str, &#krate::Ty::Variant)),
        Shape::Number(number, _) => quote!(<#number as #krate::Type>::TY),
        Shape::Text(_) => quote!(&#krate::Ty::Str),
    };
    quote! {
        impl #impl_generics #krate::Type for #name #ty_generics #where_clause {
            const TY: &'static #krate::Ty = #ty;
        }
    }
}

pub(crate) fn expand_encode(input: &Input) -> TokenStream {
    let Input { krate, name, .. } = input;
    let generics = bounded(&input.generics, &parse_quote!(#krate::Encode));
    let (impl_generics, ty_generics, where_clause) = generics.split_for_impl();
    let encode = match &input.shape {
        Shape::Struct(fields) => {
            let members = fields.iter().map(|field| &field.member);
            quote!(encoder.structure(|encoder| { #(#krate::Encode::encode(&self.#members, encoder);)* });)
        }
        Shape::Newtype(Field { member, .. }) => quote!(#krate::Encode::encode(&self.#member, encoder);),
        Shape::Dict { fields, rest } => {
            let members = fields.iter().map(|field| &field.field.member);
            let keys = fields.iter().map(|field| &field.key);
            let rest = rest.iter().map(|field| &field.member);
            quote! {
                #krate::__private::write_dict(encoder, |encoder| {
                    #(#krate::__private::WriteField::write(&self.#members, #keys, encoder);)*
                    #(#krate::__private::WriteRest::write(&self.#rest, encoder);)*
                });
            }
        }
        Shape::Number(number, variants) => quote! {
            let number = match self { #(Self::#variants => Self::#variants as #number,)* };
            #krate::Encode::encode(&number, encoder);
        },
        Shape::Text(variants) => {
            let (variants, texts): (Vec<_>, Vec<_>) =
                variants.iter().map(|(name, text)| (name, text)).unzip();
            quote!(encoder.str(match self { #(Self::#variants => #texts,)* });)
        }
    };
    quote! {
        impl #impl_generics #krate::Encode for #name #ty_generics #where_clause {
            fn encode(&self, encoder: &mut #krate::Encoder<'_>) {
                #encode
            }
        }
    }
}

pub(crate) fn expand_decode(input: &Input) -> TokenStream {
    let Input { krate, name, .. } = input;
    let (_, ty_generics, where_clause) = input.generics.split_for_impl();
    let mut generics = bounded(&input.generics, &parse_quote!(#krate::Decode<'__m>));
    // The message lives at least as long as what is borrowed from it.
    let mut message = LifetimeParam::new(Lifetime::new("'__m", Span::call_site()));
    message
        .bounds
        .extend(generics.lifetimes().map(|borrowed| borrowed.lifetime.clone()));
    generics.params.insert(0, GenericParam::Lifetime(message));
    let (impl_generics, _, _) = generics.split_for_impl();
    let (decode, fields) = match &input.shape {
        Shape::Struct(fields) => {
            let fields = struct_fields(krate, fields);
            let decode = quote!(reader.decode_struct(<Self as #krate::Decode<'__m>>::decode_fields));
            (decode, Some(fields))
        }
        Shape::Newtype(Field { member, ty }) => {
            let decode = quote! {
                #krate::__private::Ok(Self { #member: <#ty as #krate::Decode<'__m>>::decode(reader)? })
            };
            (decode, None)
        }
        Shape::Dict { fields, rest } => (dict(krate, fields, rest.as_ref()), None),
        Shape::Number(number, variants) => {
            let name = name.to_string();
            let decode = quote! {
                let number = <#number as #krate::Decode<'__m>>::decode(reader)?;
                #(if number == Self::#variants as #number {
                    return #krate::__private::Ok(Self::#variants);
                })*
                #krate::__private::Err(#krate::__private::no_variant(reader, #name, number))
            };
            (decode, None)
        }
        Shape::Text(variants) => {
            let (variants, texts): (Vec<_>, Vec<_>) =
                variants.iter().map(|(name, text)| (name, text)).unzip();
            let name = name.to_string();
            let decode = quote! {
                match reader.read_str()? {
                    #(#texts => #krate::__private::Ok(Self::#variants),)*
                    text => #krate::__private::Err(#krate::__private::no_variant(reader, #name, text)),
                }
            };
            (decode, None)
        }
    };
    let reader = quote!(reader: &mut #krate::BodyReader<'__m>);
    let result = quote!(#krate::__private::Result<Self, #krate::DecodeError>);
    let fields = fields.map(|fields| quote!(fn decode_fields(#reader) -> #result { #fields }));
    quote! {
        impl #impl_generics #krate::Decode<'__m> for #name #ty_generics #where_clause {
            fn decode(#reader) -> #result {
                #decode
            }

            #fields
        }
    }
}

fn struct_fields(krate: &Path, fields: &[Field]) -> TokenStream {
    let values = fields.iter().map(|Field { member, ty }| {
        let step = match member {
            Member::Named(name) => {
                let name = name.to_string();
                quote!(#krate::Step::Field(#name))
            }
            Member::Unnamed(index) => {
                let index = index.index as usize;
                quote!(#krate::Step::Position(#index))
            }
        };
        quote!(#member: #krate::__private::field::<#ty>(reader, #step)?)
    });
    quote!(#krate::__private::Ok(Self { #(#values),* }))
}

fn dict(krate: &Path, fields: &[DictField], rest: Option<&Field>) -> TokenStream {
    let types = fields.iter().map(|field| &field.field.ty);
    let keys: Vec<_> = fields.iter().map(|field| &field.key).collect();
    let slots: Vec<_> = (0..fields.len())
        .map(|index| quote::format_ident!("__field_{index}"))
        .collect();
    let ends = fields.iter().zip(&slots).map(|(field, slot)| {
        let (member, key) = (&field.field.member, &field.key);
        if field.default {
            quote!(#member: #krate::__private::or_default(#slot))
        } else {
            quote!(#member: #krate::__private::present(#slot, reader, #key)?)
        }
    });
    let (begin_rest, take_rest, end_rest) = match rest {
        None => (None, quote!(_ => {}), None),
        Some(Field { member, ty }) => (
            Some(quote!(let mut __rest: #ty = #krate::__private::default();)),
            quote!(key => #krate::__private::ReadRest::read(&mut __rest, key, entry)?,),
            Some(quote!(#member: __rest)),
        ),
    };
    quote! {
        #(let mut #slots: #krate::__private::Option<#types> = #krate::__private::None;)*
        #begin_rest
        reader.decode_dict(|entry| {
            match entry.read_str()? {
                #(#keys => #slots = #krate::__private::Some(#krate::__private::read_field(entry, #keys)?),)*
                #take_rest
            }
            #krate::__private::Ok(())
        })?;
        #krate::__private::Ok(Self { #(#ends,)* #end_rest })
    }
}
