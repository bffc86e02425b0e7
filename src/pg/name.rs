//! Names: values of the SQL type `name`, in and out; and names and literals as SQL has them.

use std::ffi::{CStr, c_char};

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

/// A name as SQL has it, quoted if necessary.
pub(crate) type Identifier = Vec<u8>;

/// Returns the name of a function's schema.
pub(crate) fn schema_of(function: pg_sys::FunctionCallInfo) -> Identifier {
    // SAFETY: the called function exists, and so has a schema; the names are C strings.
    unsafe {
        let schema = pg_sys::get_func_namespace((*(*function).flinfo).fn_oid);
        bytes(pg_sys::quote_identifier(pg_sys::get_namespace_name(schema)))
    }
}

/// Returns a string as a SQL literal.
pub(crate) fn literal(string: &CStr) -> Vec<u8> {
    // SAFETY: a C string, and so is the result.
    unsafe { bytes(pg_sys::quote_literal_cstr(string.as_ptr())) }
}

/// Copies a C string.
///
/// # Safety
/// `string` must be one.
pub(super) unsafe fn bytes(string: *const c_char) -> Vec<u8> {
    // SAFETY: the caller says so.
    unsafe { CStr::from_ptr(string) }.to_bytes().to_vec()
}
