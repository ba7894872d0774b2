//! How the types of the standard library are written.

use alloc::borrow::{Cow, ToOwned};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Encode, Encoder};
use crate::endian::Endian;
use crate::fd::FdIndex;
use crate::names::{
    BusName, ErrorName, InterfaceName, MemberName, ObjectPath, OwnedBusName, OwnedErrorName,
    OwnedInterfaceName, OwnedMemberName, OwnedObjectPath, OwnedUniqueName, OwnedWellKnownName, UniqueName,
    WellKnownName,
};
use crate::signature::{OwnedSignature, Signature};
use crate::tuples::for_tuples;
use crate::ty::Ty;

impl Encode for u8 {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.u8(*self);
    }

    #[inline]
    fn encode_elements(elements: &[Self], encoder: &mut Encoder<'_>) {
        encoder.raw(elements);
    }
}

impl Encode for bool {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.bool(*self);
    }
}

macro_rules! fixed {
    ($($rust:ident)+) => {
        $(impl Encode for $rust {
            #[inline]
            fn encode(&self, encoder: &mut Encoder<'_>) {
                encoder.$rust(*self);
            }

            #[inline]
            fn encode_elements(elements: &[Self], encoder: &mut Encoder<'_>) {
                if encoder.endian() == Endian::NATIVE {
                    encoder.raw(bytemuck::cast_slice(elements));
                } else {
                    encoder.out.reserve(size_of_val(elements));
                    for element in elements {
                        element.encode(encoder);
                    }
                }
            }
        })+
    };
}

fixed!(i16 u16 i32 u32 i64 u64 f64);

impl Encode for FdIndex {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.unix_fd(*self);
    }
}

impl Encode for str {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.str(self);
    }
}

impl Encode for String {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.str(self);
    }
}

macro_rules! name {
    ($($rust:ty),+) => {
        $(impl Encode for $rust {
            #[inline]
            fn encode(&self, encoder: &mut Encoder<'_>) {
                // A checked name has no nul byte.
                encoder.text(self.as_str());
            }
        })+
    };
}

name!(
    BusName<'_>,
    ErrorName<'_>,
    InterfaceName<'_>,
    MemberName<'_>,
    UniqueName<'_>,
    WellKnownName<'_>
);
name!(
    OwnedBusName,
    OwnedErrorName,
    OwnedInterfaceName,
    OwnedMemberName,
    OwnedUniqueName,
    OwnedWellKnownName
);
name!(ObjectPath<'_>, OwnedObjectPath);

impl Encode for Signature<'_> {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.signature(*self);
    }
}

impl Encode for OwnedSignature {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.signature(self.as_borrowed());
    }
}

macro_rules! same {
    ($([$($parameters:tt)*] $rust:ty;)*) => {
        $(impl<$($parameters)*> Encode for $rust {
            #[inline]
            fn encode(&self, encoder: &mut Encoder<'_>) {
                T::encode(self, encoder);
            }
        })*
    };
}

same! {
    [T: Encode + ?Sized] &T;
    [T: Encode + ?Sized] &mut T;
    [T: Encode + ?Sized] Box<T>;
    [T: Encode + ToOwned + ?Sized] Cow<'_, T>;
}

impl<T: Encode> Encode for [T] {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.array(T::TY, |encoder| T::encode_elements(self, encoder));
    }
}

impl<T: Encode> Encode for Vec<T> {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        self.as_slice().encode(encoder);
    }
}

impl<T: Encode, const N: usize> Encode for [T; N] {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        self.as_slice().encode(encoder);
    }
}

/// What every dict entry begins like.
const ENTRY: Ty = Ty::Struct(&[]);

/// An array of dict entries, in the order of the iterator.
#[inline]
fn dict<'e, K: Encode + 'e, V: Encode + 'e>(
    encoder: &mut Encoder<'_>,
    entries: impl Iterator<Item = (&'e K, &'e V)>,
) {
    encoder.array(&ENTRY, |encoder| {
        for (key, value) in entries {
            encoder.dict_entry(|encoder| {
                key.encode(encoder);
                value.encode(encoder);
            });
        }
    });
}

impl<K: Encode, V: Encode> Encode for BTreeMap<K, V> {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        dict(encoder, self.iter());
    }
}

#[cfg(feature = "std")]
impl<K: Encode, V: Encode, S> Encode for std::collections::HashMap<K, V, S> {
    #[inline]
    fn encode(&self, encoder: &mut Encoder<'_>) {
        dict(encoder, self.iter());
    }
}

impl Encode for () {
    #[inline]
    fn encode(&self, _encoder: &mut Encoder<'_>) {}
}

macro_rules! tuple {
    ($($name:ident $index:tt)+) => {
        impl<$($name: Encode),+> Encode for ($($name,)+) {
            #[inline]
            fn encode(&self, encoder: &mut Encoder<'_>) {
                encoder.structure(|encoder| {
                    $(self.$index.encode(encoder);)+
                });
            }
        }
    };
}

for_tuples!(tuple);
