//! Rows that are about to be written, as a trigger gets them.

use std::any::Any;
use std::ffi::{CStr, c_int};
use std::marker::PhantomData;
use std::slice;

use pgrx::PgMemoryContexts;
use pgrx::callconv::{BoxRet, FcInfo};
use pgrx::prelude::*;

use super::encoding::printable;
use super::relation::{Column, Relation};
use super::row::with_bytes_of;
use super::value::Value;

/// A trigger that has fired, and the row for which it has fired.
pub(crate) struct Trigger<'fcx> {
    call: pg_sys::FunctionCallInfo,
    data: &'fcx pg_sys::TriggerData,
}

impl<'fcx> Trigger<'fcx> {
    /// Returns `None` if the function was not called by a trigger.
    pub(crate) fn of(call: pg_sys::FunctionCallInfo) -> Option<Self> {
        // SAFETY: a call has a context or none; its first member says what it is.
        unsafe {
            let context = (*call).context;
            pgrx::is_a(context, pg_sys::NodeTag::T_TriggerData).then(|| Self {
                call,
                data: &*context.cast(),
            })
        }
    }

    fn definition(&self) -> &pg_sys::Trigger {
        // SAFETY: the caller of a trigger function says which trigger it is.
        unsafe { &*self.data.tg_trigger }
    }

    /// Tells whether the trigger fires before rows are inserted or updated, and at no other time.
    pub(crate) fn is_before_insert_or_update(&self) -> bool {
        const ALWAYS: u32 = pg_sys::TRIGGER_TYPE_ROW | pg_sys::TRIGGER_TYPE_BEFORE;
        const OR: u32 = pg_sys::TRIGGER_TYPE_INSERT | pg_sys::TRIGGER_TYPE_UPDATE;
        let fires = self.definition().tgtype as u32;
        fires & ALWAYS == ALWAYS && fires & !(ALWAYS | OR) == 0
    }

    /// Returns the name for a message.
    pub(crate) fn printable_name(&self) -> String {
        // SAFETY: the name is a C string.
        printable(unsafe { CStr::from_ptr(self.definition().tgname) }.to_bytes())
    }

    pub(crate) fn relation(&self) -> Relation<'fcx> {
        // SAFETY: the relation is open and locked for as long as the call lasts.
        unsafe { Relation::opened(self.data.tg_relation) }
    }

    /// Returns the arguments in the parentheses of CREATE TRIGGER.
    pub(crate) fn arguments(&self) -> impl Iterator<Item = &CStr> {
        let definition = self.definition();
        let arguments = match definition.tgnargs {
            0 => &[][..],
            // SAFETY: there are that many.
            count => unsafe { slice::from_raw_parts(definition.tgargs, count as usize) },
        };
        // SAFETY: each is a C string.
        arguments
            .iter()
            .map(|&argument| unsafe { CStr::from_ptr(argument) })
    }

    /// Returns what `make` made when the trigger first fired in this statement: neither the trigger nor
    /// the columns can change during a statement. `make` may keep what is in its memory context.
    ///
    /// # Panics
    /// If the trigger has kept something of another type.
    pub(crate) fn kept<T: Any, E>(
        &self,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<&'fcx T, E> {
        // SAFETY: the server keeps the memory for as long as it may call the function again. Only
        // this function keeps anything there, which is dropped with the memory.
        let kept: &Box<dyn Any> = unsafe {
            let function = &mut *(*self.call).flinfo;
            if function.fn_extra.is_null() {
                let mut memory = PgMemoryContexts::For(function.fn_mcxt);
                let made = memory.switch_to(|_| make())?;
                let made: Box<dyn Any> = Box::new(made);
                function.fn_extra = memory.leak_and_drop_on_delete(made).cast();
            }
            &*function.fn_extra.cast()
        };
        Ok(kept.downcast_ref().expect("a function keeps one type"))
    }

    /// Returns the value of a column in the row that is about to be written, or `None` if it is null.
    pub(crate) fn written(&self, column: &Column) -> Option<Written<'fcx>> {
        // SAFETY: an UPDATE has two rows, with the new one in a slot of its own.
        unsafe {
            let (old, new) = match self.data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
                pg_sys::TRIGGER_EVENT_UPDATE => (Some(self.data.tg_trigslot), self.data.tg_newslot),
                _ => (None, self.data.tg_trigslot),
            };
            let get = |slot| {
                let mut is_null = false;
                let datum = pg_sys::slot_getattr(slot, i32::from(column.number), &raw mut is_null);
                (!is_null).then_some(datum)
            };
            get(new).map(|new| Written {
                new,
                old: old.and_then(get),
                row: PhantomData,
            })
        }
    }

    /// Returns the row that is to be written, with these values in its columns.
    pub(crate) fn row(&self, changes: &Changes<'_>) -> Row {
        let tuple = match self.data.tg_event & pg_sys::TRIGGER_EVENT_OPMASK {
            pg_sys::TRIGGER_EVENT_UPDATE => self.data.tg_newtuple,
            _ => self.data.tg_trigtuple,
        };
        if changes.numbers.is_empty() {
            return Row(tuple);
        }
        // SAFETY: as many values as columns, of their types; they are read and copied.
        Row(unsafe {
            pg_sys::heap_modify_tuple_by_cols(
                tuple,
                (*self.data.tg_relation).rd_att,
                changes.numbers.len() as i32,
                changes.numbers.as_ptr().cast_mut(),
                changes.datums.as_ptr().cast_mut(),
                changes.nulls.as_ptr().cast_mut(),
            )
        })
    }
}

/// A value that is about to be written.
pub(crate) struct Written<'fcx> {
    new: pg_sys::Datum,
    old: Option<pg_sys::Datum>,
    row: PhantomData<&'fcx pg_sys::TriggerData>,
}

impl Written<'_> {
    /// Calls `f` with the bytes of the value, whose type must have the layout of text.
    pub(crate) fn with_bytes<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        // SAFETY: the value is a varlena.
        unsafe { with_bytes_of(self.new, false, |bytes| f(bytes.unwrap_or_default())) }
    }

    /// Tells whether this is an UPDATE that does not change the value.
    pub(crate) fn is_unchanged(&self) -> bool {
        // SAFETY: both values are varlenas.
        let equals = |old| unsafe { pg_sys::datum_image_eq(old, self.new, false, -1) };
        self.old.is_some_and(equals)
    }
}

/// Values for columns of a row.
#[derive(Default)]
pub(crate) struct Changes<'v> {
    numbers: Vec<c_int>,
    datums: Vec<pg_sys::Datum>,
    nulls: Vec<bool>,
    values: PhantomData<Value<'v>>,
}

impl<'v> Changes<'v> {
    /// The value must be of the column's type.
    pub(crate) fn push(&mut self, column: &Column, value: &Value<'v>) {
        self.numbers.push(column.number.into());
        self.datums.push(value.datum());
        self.nulls.push(false);
    }
}

/// A row that a trigger returns.
pub(crate) struct Row(pg_sys::HeapTuple);

impl_sql_translatable!(Row, "trigger");

// SAFETY: the row is the one that the trigger got, or in the memory context of the call.
unsafe impl BoxRet for Row {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: see above; a trigger returns a pointer.
        unsafe { fcinfo.return_raw_datum(self.0.into()) }
    }
}
