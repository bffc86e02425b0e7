//! Values of the SQL type `name`, in and out.

use std::ffi::CStr;

use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::nullable::Nullable;
use pgrx::prelude::*;

/// A name as it is, not quoted.
#[derive(Clone, Copy)]
pub(crate) struct Name(pg_sys::NameData);

impl Name {
    pub(crate) fn as_cstr(&self) -> &CStr {
        // SAFETY: a name ends in a zero byte.
        unsafe { CStr::from_ptr(self.0.data.as_ptr()) }
    }
}

impl FromDatum for Name {
    unsafe fn from_polymorphic_datum(
        datum: pg_sys::Datum,
        is_null: bool,
        _: pg_sys::Oid,
    ) -> Option<Self> {
        // SAFETY: the caller's datum refers to a name.
        (!is_null).then(|| unsafe { Self(*datum.cast_mut_ptr::<pg_sys::NameData>()) })
    }
}

impl IntoDatum for Name {
    fn into_datum(self) -> Option<pg_sys::Datum> {
        // SAFETY: palloc returns as much memory as it is asked for, or raises an error.
        unsafe {
            let copy = pg_sys::palloc(size_of_val(&self.0)).cast::<pg_sys::NameData>();
            copy.write(self.0);
            Some(copy.into())
        }
    }

    fn type_oid() -> pg_sys::Oid {
        pg_sys::NAMEOID
    }
}

impl_sql_translatable!(Name, "name");

// SAFETY: the argument is a name.
unsafe impl<'fcx> ArgAbi<'fcx> for Name {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: see above.
        unsafe { arg.unbox_arg_using_from_datum() }.expect("the argument is not null")
    }

    unsafe fn unbox_nullable_arg(arg: Arg<'_, 'fcx>) -> Nullable<Self> {
        // SAFETY: see above.
        unsafe { arg.unbox_arg_using_from_datum() }.into()
    }
}

// SAFETY: the datum is a name in the memory context of the call.
unsafe impl BoxRet for Name {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        let datum = self.into_datum().expect("a name is not null");
        // SAFETY: see above.
        unsafe { fcinfo.return_raw_datum(datum) }
    }
}
