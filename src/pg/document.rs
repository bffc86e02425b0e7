//! JSON, in and out.

use std::marker::PhantomData;

use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::prelude::*;

use super::Error;
use super::memory::with_room_for_errors;
use super::value_type::ValueType;
use crate::fernet::Haystack;

/// An argument of type json or jsonb, which is detoasted only when it has to be; or a result.
#[derive(Clone, Copy)]
pub(crate) struct Document<'fcx> {
    datum: pg_sys::Datum,
    call: PhantomData<&'fcx ()>,
}

impl<'fcx> Document<'fcx> {
    /// Calls `f` with each part of the document in which there may be a token.
    pub(crate) fn read(
        self,
        value_type: &ValueType,
        mut f: impl FnMut(Haystack<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // SAFETY: `sql/pg_fernet.sql` declares the argument with the type that the caller expects.
        with_room_for_errors(|| unsafe { value_type.read(self.datum, &mut f) })
    }

    /// Calls `f` with each such part, and with as much room, to which it may write a replacement and
    /// return its length. Returns the new document, if there is one.
    pub(crate) fn change(
        self,
        value_type: &ValueType,
        mut f: impl FnMut(Haystack<'_>, &mut [u8]) -> Result<Option<usize>, Error>,
    ) -> Result<Option<Self>, Error> {
        // SAFETY: as above. The new value is in the memory context of the call.
        let changed = with_room_for_errors(|| unsafe { value_type.change(self.datum, &mut f) })?;
        Ok(changed.map(|datum| Self { datum, ..self }))
    }
}

// `sql/pg_fernet.sql` declares every function itself.
impl_sql_translatable!(Document<'_>, "jsonb");

impl FromDatum for Document<'_> {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _: pg_sys::Oid,
    ) -> Option<Self> {
        let call = PhantomData;
        (!is_null).then_some(Self { datum, call })
    }
}

// SAFETY: as for FromDatum.
unsafe impl<'fcx> ArgAbi<'fcx> for Document<'fcx> {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the argument is a document, and not null, since every function that takes one is STRICT.
        let document = unsafe { arg.unbox_arg_using_from_datum() };
        document.expect("the function is STRICT")
    }
}

// SAFETY: the datum is an argument, or in the function call's memory context.
unsafe impl BoxRet for Document<'_> {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: see above.
        unsafe { fcinfo.return_raw_datum(self.datum) }
    }
}
