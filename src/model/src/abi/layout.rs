// SPDX-License-Identifier: Apache-2.0
//! How a Rust declaration describes its own C layout.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// A 16 bit value in network byte order, in memory and in C (`__be16`).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct Be16(u16);

/// A 32 bit value in network byte order, in memory and in C (`__be32`).
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(transparent)]
pub struct Be32(u32);

impl Be16 {
    /// From a host order value.
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }
    /// The value in host order.
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl Be32 {
    /// From a host order value.
    pub const fn new(host: u32) -> Self {
        Self(host.to_be())
    }
    /// The value in host order.
    pub const fn get(self) -> u32 {
        u32::from_be(self.0)
    }
    /// From four bytes as they stand in a packet.
    pub const fn from_wire(bytes: [u8; 4]) -> Self {
        Self(u32::from_ne_bytes(bytes))
    }
    /// The four bytes as they stand in a packet.
    pub const fn to_wire(self) -> [u8; 4] {
        self.0.to_ne_bytes()
    }
}

impl std::fmt::Debug for Be16 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.get())
    }
}

impl std::fmt::Debug for Be32 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#010x}", self.get())
    }
}

/// A type that has a name in C.
pub trait CType {
    /// The C declaration of a field of this type called `name`.
    fn declare(name: &str) -> String;
}

macro_rules! c_scalar {
    ($($rust:ty => $c:literal),* $(,)?) => {
        $(impl CType for $rust {
            fn declare(name: &str) -> String {
                format!(concat!($c, " {}"), name)
            }
        })*
    };
}

c_scalar!(u8 => "__u8", u16 => "__u16", u32 => "__u32", u64 => "__u64", Be16 => "__be16", Be32 => "__be32");

impl<T: CType, const N: usize> CType for [T; N] {
    fn declare(name: &str) -> String {
        T::declare(&format!("{name}[{N}]"))
    }
}

/// One field of a shared structure; offset and size in bytes.
pub struct Field {
    pub name: &'static str,
    pub declaration: String,
    pub offset: usize,
    pub size: usize,
    pub doc: &'static str,
}

/// A structure that both sides know.
pub trait CStruct {
    const NAME: &'static str;
    const SIZE: usize;
    const DOC: &'static str;
    fn fields() -> Vec<Field>;
}

/// Declares a `#[repr(C)]` structure once: the Rust type, its zerocopy derives and its C description.
macro_rules! c_struct {
    ($(#[doc = $doc:literal])* $name:ident as $cname:literal { $($(#[doc = $fdoc:literal])* $field:ident : $ty:ty,)* }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable)]
        #[repr(C)]
        pub struct $name { $($(#[doc = $fdoc])* pub $field: $ty,)* }

        impl Default for $name {
            fn default() -> Self {
                <Self as zerocopy::FromZeros>::new_zeroed()
            }
        }

        impl $crate::abi::layout::CType for $name {
            fn declare(name: &str) -> String {
                format!(concat!("struct ", $cname, " {}"), name)
            }
        }

        impl $crate::abi::layout::CStruct for $name {
            const NAME: &'static str = $cname;
            const SIZE: usize = std::mem::size_of::<$name>();
            const DOC: &'static str = concat!($($doc,)*);
            fn fields() -> Vec<$crate::abi::layout::Field> {
                vec![$($crate::abi::layout::Field {
                    name: stringify!($field),
                    declaration: <$ty as $crate::abi::layout::CType>::declare(stringify!($field)),
                    offset: std::mem::offset_of!($name, $field),
                    size: std::mem::size_of::<$ty>(),
                    doc: concat!($($fdoc,)*),
                }),*]
            }
        }
    };
}
pub(super) use c_struct;

/// Declares a set of named numbers once: a Rust enum with text for people, and C constants with `prefix`.
macro_rules! c_enum {
    ($(#[doc = $doc:literal])* $name:ident : $repr:ty as $cname:literal { $($variant:ident = $value:literal, $c:literal, $text:literal;)* }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr($repr)]
        pub enum $name { $(#[doc = $text] $variant = $value,)* }

        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),*];
            /// The value that stands in maps and events, if it is one of ours.
            pub fn from_raw(raw: $repr) -> Option<Self> {
                match raw { $($value => Some(Self::$variant),)* _ => None }
            }
            pub const fn raw(self) -> $repr {
                self as $repr
            }
            /// What a person reads.
            pub const fn text(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
            pub(crate) fn c_constants() -> (&'static str, Vec<(&'static str, u64)>) {
                ($cname, vec![$(($c, $value as u64)),*])
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.text())
            }
        }
    };
}
pub(super) use c_enum;

/// Declares numbers (bit flags, limits) that C reads as an anonymous enum.
macro_rules! c_consts {
    ($(#[doc = $gdoc:literal])* $list:ident : $ty:ty { $($(#[doc = $doc:literal])* $name:ident = $value:expr;)* }) => {
        $($(#[doc = $doc])* pub const $name: $ty = $value;)*
        $(#[doc = $gdoc])*
        pub const $list: &[(&str, u64)] = &[$((stringify!($name), $name as u64)),*];
    };
}
pub(super) use c_consts;
