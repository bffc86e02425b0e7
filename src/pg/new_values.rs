//! New values for rows, in a table that queries can read.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::{ptr, thread};

use pgrx::prelude::*;

use super::row::{Tid, Xid};
use super::spi::{Connection, fail};
use super::value::Value;
use super::value_type::ValueType;

/// New values for rows. Queries of the connection can read them as the table `fernet_new_values`, with
/// the place of a row, its writer and its new value.
pub(crate) struct NewValues<'c> {
    rows: *mut pg_sys::Tuplestorestate,
    shape: pg_sys::TupleDesc,
    connection: PhantomData<&'c Connection>,
}

impl<'c> NewValues<'c> {
    const NAME: &'static CStr = c"fernet_new_values";

    /// Makes room for about `rows` of them.
    pub(crate) fn new(_: &'c Connection, value_type: &ValueType, about: usize) -> Self {
        let columns = [
            (c"id", pg_sys::TIDOID),
            (c"writer", pg_sys::XIDOID),
            (c"value", value_type.oid),
        ];
        // SAFETY: as many columns are described as there are. What is made here is in memory of the
        // connection; what exceeds work_mem is in a file that `drop` closes. The relation, too, is moved
        // to such memory, and is used only as long as the rows exist.
        unsafe {
            let shape = pg_sys::CreateTemplateTupleDesc(columns.len() as i32);
            for ((name, oid), number) in columns.into_iter().zip(1..) {
                pg_sys::TupleDescInitEntry(shape, number, name.as_ptr(), oid, -1, 0);
            }
            #[cfg(feature = "pg19")]
            pg_sys::TupleDescFinalize(shape);
            let rows = pg_sys::tuplestore_begin_heap(false, false, pg_sys::work_mem);
            let relation = pg_sys::EphemeralNamedRelationData {
                md: pg_sys::EphemeralNamedRelationMetadataData {
                    name: Self::NAME.as_ptr().cast_mut(),
                    reliddesc: pg_sys::InvalidOid,
                    tupdesc: shape,
                    enrtype: pg_sys::EphemeralNameRelationType::ENR_NAMED_TUPLESTORE,
                    enrtuples: about as f64,
                },
                reldata: rows.cast(),
            };
            let memory = pg_sys::palloc(size_of_val(&relation)).cast();
            ptr::copy_nonoverlapping(&raw const relation, memory, 1);
            if pg_sys::SPI_register_relation(memory) < 0 {
                fail("SPI_register_relation");
            }
            Self {
                rows,
                shape,
                connection: PhantomData,
            }
        }
    }

    /// Forgets all values. No query must be reading them.
    pub(crate) fn clear(&self) {
        // SAFETY: open until `self` is dropped.
        unsafe { pg_sys::tuplestore_clear(self.rows) };
    }

    pub(crate) fn push(&self, id: Tid, writer: Xid, value: Value<'_>) {
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
    }
}

impl Drop for NewValues<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: registered under that name; no query reads the rows any more.
            unsafe {
                pg_sys::SPI_unregister_relation(Self::NAME.as_ptr());
                pg_sys::tuplestore_end(self.rows);
            }
        }
    }
}
