//! New values for rows, as a table that queries can read.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::{ptr, thread};

use pgrx::prelude::*;

use super::row::{Tid, Xid};
use super::spi::{Connection, fail};
use super::value::Value;
use super::value_type::ValueType;

/// New values for rows, which a query can read as the table `fernet_new_values`: the place of a row,
/// its writer, and the value.
pub(crate) struct NewValues<'c> {
    rows: *mut pg_sys::Tuplestorestate,
    shape: pg_sys::TupleDesc,
    count: usize,
    connection: PhantomData<&'c Connection>,
}

impl<'c> NewValues<'c> {
    const NAME: &'static CStr = c"fernet_new_values";

    pub(crate) fn new(_: &'c Connection, value_type: &ValueType) -> Self {
        let columns = [
            (c"id", pg_sys::TIDOID),
            (c"writer", pg_sys::XIDOID),
            (c"value", value_type.oid),
        ];
        // SAFETY: as many columns are described as there are. What is made here is in memory of the
        // connection; what exceeds work_mem is in a file that `drop` closes.
        unsafe {
            let shape = pg_sys::CreateTemplateTupleDesc(columns.len() as i32);
            for ((name, oid), number) in columns.into_iter().zip(1..) {
                pg_sys::TupleDescInitEntry(shape, number, name.as_ptr(), oid, -1, 0);
            }
            #[cfg(feature = "pg19")]
            pg_sys::TupleDescFinalize(shape);
            Self {
                rows: pg_sys::tuplestore_begin_heap(false, false, pg_sys::work_mem),
                shape,
                count: 0,
                connection: PhantomData,
            }
        }
    }

    pub(crate) fn push(&mut self, id: Tid, writer: Xid, value: Value<'_>) {
        let id = id.to_item_pointer();
        let mut datums = [ptr::from_ref(&id).into(), writer.0.into(), value.datum()];
        // SAFETY: the values are those of the three columns; they are copied.
        unsafe {
            pg_sys::tuplestore_putvalues(
                self.rows,
                self.shape,
                datums.as_mut_ptr(),
                [false; 3].as_mut_ptr(),
            );
        }
        self.count += 1;
    }

    /// Shows the values to queries until the result is dropped.
    pub(crate) fn show(&self) -> Shown<'_> {
        let mut relation = pg_sys::EphemeralNamedRelationData {
            md: pg_sys::EphemeralNamedRelationMetadataData {
                name: Self::NAME.as_ptr().cast_mut(),
                reliddesc: pg_sys::InvalidOid,
                tupdesc: self.shape,
                enrtype: pg_sys::EphemeralNameRelationType::ENR_NAMED_TUPLESTORE,
                enrtuples: self.count as f64,
            },
            reldata: self.rows.cast(),
        };
        // SAFETY: the description is moved into memory of the connection, and used no longer than
        // the rows are there.
        unsafe {
            let memory = pg_sys::palloc(size_of_val(&relation)).cast();
            ptr::copy_nonoverlapping(&raw mut relation, memory, 1);
            if pg_sys::SPI_register_relation(memory) < 0 {
                fail("SPI_register_relation");
            }
        }
        Shown(PhantomData)
    }
}

impl Drop for NewValues<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: no query reads the rows any more.
            unsafe { pg_sys::tuplestore_end(self.rows) };
        }
    }
}

/// [`NewValues`] that queries see.
pub(crate) struct Shown<'v>(PhantomData<&'v ()>);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: registered under that name.
            unsafe { pg_sys::SPI_unregister_relation(NewValues::NAME.as_ptr()) };
        }
    }
}
