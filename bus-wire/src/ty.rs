//! The D-Bus types of Rust types, as constants (specification, "Type System").

use alloc::borrow::{Cow, ToOwned};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::marker::PhantomData;

use crate::fd::FdIndex;
use crate::limits::{MAX_ARRAY_DEPTH, MAX_SIGNATURE, MAX_STRUCT_DEPTH};
use crate::names::{
    BusName, ErrorName, InterfaceName, MemberName, ObjectPath, OwnedBusName, OwnedErrorName,
    OwnedInterfaceName, OwnedMemberName, OwnedObjectPath, OwnedUniqueName, OwnedWellKnownName, UniqueName,
    WellKnownName,
};
use crate::signature::{OwnedSignature, Signature};
use crate::tuples::for_tuples;

/// One complete type, as a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ty {
    /// BYTE, `y`.
    Byte,
    /// BOOLEAN, `b`.
    Bool,
    /// INT16, `n`.
    I16,
    /// UINT16, `q`.
    U16,
    /// INT32, `i`.
    I32,
    /// UINT32, `u`.
    U32,
    /// INT64, `x`.
    I64,
    /// UINT64, `t`.
    U64,
    /// DOUBLE, `d`.
    F64,
    /// UNIX_FD, `h`.
    Fd,
    /// STRING, `s`.
    Str,
    /// OBJECT_PATH, `o`.
    Path,
    /// SIGNATURE, `g`.
    Signature,
    /// VARIANT, `v`.
    Variant,
    /// ARRAY of this.
    Array(&'static Self),
    /// ARRAY of DICT_ENTRY: of which key, and of which value. The key is of a basic type.
    Dict(&'static Self, &'static Self),
    /// STRUCT of these; at least one.
    Struct(&'static [&'static Self]),
}

impl Ty {
    /// The code that a signature of this type begins with.
    pub const fn code(&self) -> u8 {
        match self {
            Self::Byte => b'y',
            Self::Bool => b'b',
            Self::I16 => b'n',
            Self::U16 => b'q',
            Self::I32 => b'i',
            Self::U32 => b'u',
            Self::I64 => b'x',
            Self::U64 => b't',
            Self::F64 => b'd',
            Self::Fd => b'h',
            Self::Str => b's',
            Self::Path => b'o',
            Self::Signature => b'g',
            Self::Variant => b'v',
            Self::Array(_) | Self::Dict(..) => b'a',
            Self::Struct(_) => b'(',
        }
    }

    /// The alignment of its values, in bytes (specification, "Marshaling", summary table).
    pub const fn alignment(&self) -> usize {
        crate::signature::alignment(self.code())
    }

    /// Whether it is not a container, so that it can be the key of a dict entry (specification, "Basic types").
    pub const fn is_basic(&self) -> bool {
        crate::signature::is_basic(self.code())
    }
}

/// A Rust type that has a D-Bus type.
///
/// It can be derived: `#[derive(Type)]`, with the feature `derive`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` has no D-Bus type",
    note = "it can be derived for your own types: `#[derive(Type)]`",
    note = "there is no null in D-Bus: an `Option` can only be a field of a dict struct"
)]
pub trait Type {
    /// Which type.
    const TY: &'static Ty;
    /// Whether, as the body of a message, it stands for all the arguments, and not for one: so for tuples.
    #[doc(hidden)]
    const IS_ARGUMENTS: bool = false;
}

/// The signature of `T`: one complete type (of `()`, none).
///
/// It is computed by the compiler. A type that is none in D-Bus (nested too deep, a container as the key of a dict, a
/// signature of more than 255 bytes) is an error of compilation.
///
/// ```
/// use std::collections::HashMap;
/// use bus_wire::signature_of;
///
/// assert_eq!(signature_of::<HashMap<String, (u8, Vec<i64>)>>().as_str(), "a{s(yax)}");
/// ```
///
/// A container as the key of a dict, `()` in another type, 33 arrays within each other:
/// ```compile_fail
/// const KEY: bus_wire::Signature<'static> = bus_wire::signature_of::<std::collections::BTreeMap<(u8, u8), u8>>();
/// ```
/// ```compile_fail
/// const UNIT: bus_wire::Signature<'static> = bus_wire::signature_of::<Vec<()>>();
/// ```
/// ```compile_fail
/// type Deep<T> = Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<T>>>>>>>>;
/// const DEEP: bus_wire::Signature<'static> = bus_wire::signature_of::<Deep<Deep<Deep<Deep<Vec<u8>>>>>>();
/// ```
/// ```
/// type Deep<T> = Vec<Vec<Vec<Vec<Vec<Vec<Vec<Vec<T>>>>>>>>;
/// const DEEP: bus_wire::Signature<'static> = bus_wire::signature_of::<Deep<Deep<Deep<Deep<u8>>>>>();
/// ```
/// An `Option` that is no field of a dict:
/// ```compile_fail
/// bus_wire::signature_of::<Option<u8>>();
/// ```
#[inline]
pub const fn signature_of<T: Type + ?Sized>() -> Signature<'static> {
    Of::<T>::SIGNATURE
}

/// The signature of a body that is a `T`: that of its values, if `T` is a tuple, otherwise that of `T`.
///
/// ```
/// use bus_wire::{body_signature_of, signature_of};
///
/// assert_eq!(signature_of::<(u8, &str)>().as_str(), "(ys)");
/// assert_eq!(body_signature_of::<(u8, &str)>().as_str(), "ys");
/// assert_eq!(body_signature_of::<((u8, &str),)>().as_str(), "(ys)");
/// assert_eq!(body_signature_of::<&str>().as_str(), "s");
/// assert_eq!(body_signature_of::<()>().as_str(), "");
/// ```
#[inline]
pub const fn body_signature_of<T: Type + ?Sized>() -> Signature<'static> {
    if T::IS_ARGUMENTS {
        Of::<T>::FIELDS
    } else {
        Of::<T>::SIGNATURE
    }
}

/// The signature of the fields of the struct `T`, without its parentheses.
#[inline]
pub(crate) const fn fields_signature_of<T: Type + ?Sized>() -> Signature<'static> {
    Of::<T>::FIELDS
}

/// A place for the constants of a type.
struct Of<T: ?Sized>(PhantomData<T>);

impl<T: Type + ?Sized> Of<T> {
    const TEXT: &'static Text = &Text::of(T::TY);
    const SIGNATURE: Signature<'static> = Signature::checked(Self::TEXT.as_str());
    const FIELDS: Signature<'static> = {
        let text = Self::TEXT.as_str();
        if let Ty::Struct(_) = T::TY
            && !text.is_empty()
        {
            let (_, fields) = text.split_at(1);
            Signature::checked(fields.split_at(fields.len() - 1).0)
        } else {
            Self::SIGNATURE
        }
    };
}

/// A signature while it is written.
struct Text {
    bytes: [u8; MAX_SIGNATURE],
    length: usize,
}

impl Text {
    const fn of(ty: &Ty) -> Self {
        let mut text = Self {
            bytes: [0; MAX_SIGNATURE],
            length: 0,
        };
        // The body without a value.
        if !matches!(ty, Ty::Struct([])) {
            text.write(ty, 0, 0);
        }
        text
    }

    const fn push(&mut self, code: u8) {
        assert!(
            self.length < MAX_SIGNATURE,
            "a signature has at most 255 bytes (specification, Valid Signatures)"
        );
        self.bytes[self.length] = code;
        self.length += 1;
    }

    const fn write(&mut self, ty: &Ty, arrays: u32, structs: u32) {
        assert!(
            arrays <= MAX_ARRAY_DEPTH && structs <= MAX_STRUCT_DEPTH,
            "arrays and structs are nested at most 32 deep (specification, Valid Signatures)"
        );
        self.push(ty.code());
        match ty {
            Ty::Array(element) => self.write(element, arrays + 1, structs),
            Ty::Dict(key, value) => {
                assert!(
                    key.is_basic(),
                    "the key of a dict is of a basic type (specification, Container types)"
                );
                self.push(b'{');
                self.push(key.code());
                self.write(value, arrays + 1, structs);
                self.push(b'}');
            }
            Ty::Struct(fields) => {
                assert!(
                    !fields.is_empty(),
                    "() is no type: a struct has at least one field (specification, Container types)"
                );
                let mut at = 0;
                while at < fields.len() {
                    self.write(fields[at], arrays, structs + 1);
                    at += 1;
                }
                self.push(b')');
            }
            Ty::Byte | Ty::Bool | Ty::I16 | Ty::U16 | Ty::I32 | Ty::U32 | Ty::I64 | Ty::U64 | Ty::F64 => {}
            Ty::Fd | Ty::Str | Ty::Path | Ty::Signature | Ty::Variant => {}
        }
    }

    const fn as_str(&self) -> &str {
        let (text, _) = self.bytes.split_at(self.length);
        match core::str::from_utf8(text) {
            Ok(text) => text,
            Err(_) => panic!("type codes are ASCII"),
        }
    }
}

macro_rules! basic {
    ($($ty:ident: $($rust:ty),+;)*) => {
        $($(impl Type for $rust {
            const TY: &'static Ty = &Ty::$ty;
        })+)*
    };
}

basic! {
    Byte: u8;
    Bool: bool;
    I16: i16;
    U16: u16;
    I32: i32;
    U32: u32;
    I64: i64;
    U64: u64;
    F64: f64;
    Fd: FdIndex;
    Str: str, String;
    Str: BusName<'_>, ErrorName<'_>, InterfaceName<'_>, MemberName<'_>, UniqueName<'_>, WellKnownName<'_>;
    Str: OwnedBusName, OwnedErrorName, OwnedInterfaceName, OwnedMemberName, OwnedUniqueName, OwnedWellKnownName;
    Path: ObjectPath<'_>, OwnedObjectPath;
    Signature: Signature<'_>, OwnedSignature;
}

macro_rules! same {
    ($($(#[$attribute:meta])* [$($parameters:tt)*] $rust:ty;)*) => {
        $($(#[$attribute])* impl<$($parameters)*> Type for $rust {
            const TY: &'static Ty = T::TY;
            const IS_ARGUMENTS: bool = T::IS_ARGUMENTS;
        })*
    };
}

same! {
    [T: Type + ?Sized] &T;
    [T: Type + ?Sized] &mut T;
    [T: Type + ?Sized] Box<T>;
    [T: Type + ToOwned + ?Sized] Cow<'_, T>;
}

impl<T: Type> Type for [T] {
    const TY: &'static Ty = &Ty::Array(T::TY);
}

impl<T: Type> Type for Vec<T> {
    const TY: &'static Ty = <[T]>::TY;
}

impl<T: Type, const N: usize> Type for [T; N] {
    const TY: &'static Ty = <[T]>::TY;
}

impl<K: Type, V: Type> Type for BTreeMap<K, V> {
    const TY: &'static Ty = &Ty::Dict(K::TY, V::TY);
}

#[cfg(feature = "std")]
impl<K: Type, V: Type, S> Type for std::collections::HashMap<K, V, S> {
    const TY: &'static Ty = &Ty::Dict(K::TY, V::TY);
}

/// No value: an empty body. As part of another type it is an error of compilation.
impl Type for () {
    const TY: &'static Ty = &Ty::Struct(&[]);
    const IS_ARGUMENTS: bool = true;
}

macro_rules! tuple {
    ($($name:ident $index:tt)+) => {
        impl<$($name: Type),+> Type for ($($name,)+) {
            const TY: &'static Ty = &Ty::Struct(&[$($name::TY),+]);
            const IS_ARGUMENTS: bool = true;
        }
    };
}

for_tuples!(tuple);
