//! Numbers, of which every value is valid and has the same length.

use alloc::borrow::Cow;

use crate::endian::Endian;
use crate::ty::Type;

/// A number whose arrays can be read at once: [`BodyReader::fixed_array`](crate::BodyReader::fixed_array).
pub trait Fixed: Type + Copy + sealed::Fixed + 'static {}

mod sealed {
    use super::{Cow, Endian};

    pub trait Fixed: Sized + Clone {
        /// The numbers that are in `bytes`, whose length is a multiple of theirs.
        fn array(bytes: &[u8], endian: Endian) -> Cow<'_, [Self]>;
    }
}

macro_rules! fixed {
    ($($rust:ident)+) => {
        $(impl Fixed for $rust {}

        impl sealed::Fixed for $rust {
            fn array(bytes: &[u8], endian: Endian) -> Cow<'_, [Self]> {
                if endian == Endian::NATIVE
                    && let Ok(numbers) = bytemuck::try_cast_slice(bytes)
                {
                    return Cow::Borrowed(numbers);
                }
                // Each loop is a copy at the speed of memory.
                let (numbers, _) = bytes.as_chunks();
                Cow::Owned(match endian {
                    Endian::Little => numbers.iter().map(|bytes| Self::from_le_bytes(*bytes)).collect(),
                    Endian::Big => numbers.iter().map(|bytes| Self::from_be_bytes(*bytes)).collect(),
                })
            }
        })+
    };
}

fixed!(u8 i16 u16 i32 u32 i64 u64 f64);
