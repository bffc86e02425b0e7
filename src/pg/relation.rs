//! What the server knows about a relation and its columns.

use std::ffi::CStr;
use std::marker::PhantomData;
use std::ptr::NonNull;
use std::{slice, thread};

use pgrx::prelude::*;

use super::Error;
use super::encoding::printable;
use super::name::{Identifier, bytes};
use super::spi::Connection;
use super::value_type::ValueType;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Table,
    PartitionedTable,
    View,
    MaterializedView,
    ForeignTable,
    /// An index, a sequence, a composite type: no rows to convert.
    Other,
}

#[derive(Clone, Copy)]
pub(crate) enum Lock {
    Read,
    Write,
}

/// An open relation. The lock on it, and so its name, lasts until the transaction ends.
pub(crate) struct Relation<'c> {
    relation: NonNull<pg_sys::RelationData>,
    connection: PhantomData<&'c Connection>,
}

impl<'c> Relation<'c> {
    /// Opens a relation, or returns `None` if it no longer exists.
    pub(crate) fn open(_: &'c Connection, oid: pg_sys::Oid, lock: Lock) -> Option<Self> {
        Self::open_relation(oid, lock)
    }

    fn open_relation(oid: pg_sys::Oid, lock: Lock) -> Option<Self> {
        let mode = match lock {
            Lock::Read => pg_sys::AccessShareLock,
            Lock::Write => pg_sys::RowExclusiveLock,
        };
        // SAFETY: returns null where there is no such relation.
        let relation = unsafe { pg_sys::try_relation_open(oid, mode as pg_sys::LOCKMODE) };
        NonNull::new(relation).map(|relation| Self {
            relation,
            connection: PhantomData,
        })
    }

    /// Returns a relation that other code has opened and keeps open and locked.
    ///
    /// # Safety
    /// It must stay open and locked for as long as `'c`.
    pub(super) unsafe fn opened(relation: pg_sys::Relation) -> Self {
        // SAFETY: the caller says that it is open, so its use count can be raised.
        unsafe { pg_sys::RelationIncrementReferenceCount(relation) };
        Self {
            relation: NonNull::new(relation).expect("an open relation"),
            connection: PhantomData,
        }
    }

    /// Locks the partitioned tables above a partition, the uppermost first, for the rest of the
    /// transaction. Call it before the partition itself is opened: writing to a partition takes
    /// these locks, too, and whoever changes the tables takes theirs in this order.
    pub(crate) fn lock_ancestors(_: &'c Connection, oid: pg_sys::Oid) {
        let mode = pg_sys::AccessShareLock as pg_sys::LOCKMODE;
        for ancestor in ancestors(oid).into_iter().rev() {
            // SAFETY: no pointers; a relation that no longer exists is locked all the same.
            unsafe { pg_sys::LockRelationOid(ancestor, mode) };
        }
    }

    pub(crate) fn as_ptr(&self) -> pg_sys::Relation {
        self.relation.as_ptr()
    }

    fn data(&self) -> &pg_sys::RelationData {
        // SAFETY: open until `self` is dropped.
        unsafe { self.relation.as_ref() }
    }

    fn class(&self) -> &pg_sys::FormData_pg_class {
        // SAFETY: the row of the catalog belongs to the open relation.
        unsafe { &*self.data().rd_rel }
    }

    pub(crate) fn oid(&self) -> pg_sys::Oid {
        self.data().rd_id
    }

    pub(crate) fn kind(&self) -> Kind {
        match self.class().relkind as u8 {
            pg_sys::RELKIND_RELATION => Kind::Table,
            pg_sys::RELKIND_PARTITIONED_TABLE => Kind::PartitionedTable,
            pg_sys::RELKIND_VIEW => Kind::View,
            pg_sys::RELKIND_MATVIEW => Kind::MaterializedView,
            pg_sys::RELKIND_FOREIGN_TABLE => Kind::ForeignTable,
            _ => Kind::Other,
        }
    }

    /// Tells whether the relation was made with the server: a catalog, or a table of
    /// `information_schema`.
    pub(crate) fn is_catalog(&self) -> bool {
        self.oid().to_u32() < pg_sys::FirstNormalObjectId
    }

    /// Returns the name with its schema.
    pub(crate) fn name(&self) -> Identifier {
        let class = self.class();
        // SAFETY: the results are C strings, or null if nothing has the oid; a locked relation has
        // a schema. A palloc'ed string is freed with its memory context.
        unsafe {
            let schema = pg_sys::get_namespace_name(class.relnamespace);
            let name = class.relname.data.as_ptr();
            bytes(pg_sys::quote_qualified_identifier(schema, name))
        }
    }

    /// Returns the name for a message.
    pub(crate) fn printable_name(&self) -> String {
        printable(&self.name())
    }

    /// Returns the identity of the file. A table gets another one when it is rewritten.
    pub(crate) fn file(&self) -> pg_sys::Oid {
        self.class().relfilenode
    }

    /// Returns how many blocks the table has.
    pub(crate) fn blocks(&self) -> u32 {
        // SAFETY: the relation is an open table.
        unsafe {
            pg_sys::RelationGetNumberOfBlocksInFork(
                self.relation.as_ptr(),
                pg_sys::ForkNumber::MAIN_FORKNUM,
            )
        }
    }

    /// Tells whether the table's access method finds rows by a range of blocks.
    pub(crate) fn has_tid_ranges(&self) -> bool {
        // SAFETY: an open relation's access method is null or valid.
        unsafe { self.data().rd_tableam.as_ref() }
            .is_some_and(|method| method.scan_set_tidrange.is_some())
    }

    /// Returns the functions of the table's access method.
    pub(crate) fn access_method(&self) -> &pg_sys::TableAmRoutine {
        // SAFETY: an open table has an access method.
        unsafe { &*self.data().rd_tableam }
    }

    /// Raises an error if the current role may not read these columns, given by their numbers, or may
    /// not look names up in the table's schema: without that right, no query could name the table.
    pub(crate) fn ensure_readable(&self, columns: &[i16]) {
        // SAFETY: looks up oids; a locked relation has a schema, and its name is a C string.
        unsafe {
            pg_sys::LookupExplicitNamespace(
                pg_sys::get_namespace_name(self.class().relnamespace),
                false,
            );
        }
        self.ensure_granted(pg_sys::ACL_SELECT as pg_sys::AclMode, columns);
    }

    /// Raises an error if the current role may not update this column of the table.
    pub(crate) fn ensure_updatable(&self, column: i16) {
        self.ensure_granted(pg_sys::ACL_UPDATE as pg_sys::AclMode, &[column]);
    }

    fn ensure_granted(&self, right: pg_sys::AclMode, columns: &[i16]) {
        // SAFETY: look up an oid, and numbers of its columns; its name is a C string.
        unsafe {
            let role = pg_sys::GetUserId();
            let is_granted = |&column| {
                pg_sys::pg_attribute_aclcheck(self.oid(), column, role, right)
                    == pg_sys::AclResult::ACLCHECK_OK
            };
            let of_table = pg_sys::pg_class_aclcheck(self.oid(), role, right);
            if of_table != pg_sys::AclResult::ACLCHECK_OK && !columns.iter().all(is_granted) {
                let kind = pg_sys::ObjectType::OBJECT_TABLE;
                let name = self.class().relname.data.as_ptr();
                pg_sys::aclcheck_error(of_table, kind, name);
            }
        }
    }

    /// Tells whether a column is in the partition key of the relation or of one that it is a
    /// partition of. If it is, a row may move to another partition when the column changes.
    pub(crate) fn is_partitioned_by(&self, column: &CStr) -> bool {
        let is_key = |relation: &Self| {
            let mut in_expression = false;
            // SAFETY: a C string; an open relation, and the number of one of its columns, as such sets
            // have it.
            unsafe {
                let number = pg_sys::get_attnum(relation.oid(), column.as_ptr());
                let set = pg_sys::bms_make_singleton(
                    i32::from(number) - pg_sys::FirstLowInvalidHeapAttributeNumber,
                );
                pg_sys::has_partition_attrs(relation.as_ptr(), set, &raw mut in_expression)
            }
        };
        is_key(self)
            || ancestors(self.oid())
                .into_iter()
                .filter_map(|oid| Self::open_relation(oid, Lock::Read))
                .any(|ancestor| is_key(&ancestor))
    }

    /// Tells whether a column is in a unique index that a foreign key could refer to.
    pub(crate) fn is_key(&self, column: i16) -> bool {
        let number = i32::from(column) - pg_sys::FirstLowInvalidHeapAttributeNumber;
        // SAFETY: the relation is open; the set is a copy, and is freed with its memory context.
        unsafe {
            let keys = pg_sys::RelationGetIndexAttrBitmap(
                self.as_ptr(),
                pg_sys::IndexAttrBitmapKind::INDEX_ATTR_BITMAP_KEY,
            );
            pg_sys::bms_is_member(number, keys)
        }
    }

    /// Tells whether an UPDATE of the relation runs trigger code, or another statement in its place.
    pub(crate) fn has_code_on_update(&self) -> bool {
        // SAFETY: the relation is open, and so is the description of its triggers, if it has any.
        let triggers = unsafe {
            self.data().trigdesc.as_ref().map_or(&[][..], |triggers| {
                slice::from_raw_parts(triggers.triggers, triggers.numtriggers as usize)
            })
        };
        // Internal triggers check foreign keys.
        let is_called = |trigger: &pg_sys::Trigger| {
            !trigger.tgisinternal && trigger.tgtype as u32 & pg_sys::TRIGGER_TYPE_UPDATE != 0
        };
        self.class().relhasrules || triggers.iter().any(is_called)
    }

    /// Tells whether policies for row-level security may hide rows from the current role.
    pub(crate) fn hides_rows(&self) -> bool {
        // SAFETY: looks up an oid, for the current role, without an error.
        let state = unsafe { pg_sys::check_enable_rls(self.oid(), pg_sys::InvalidOid, true) };
        state == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
    }

    /// Finds a column that can hold tokens.
    pub(crate) fn column(&self, name: &CStr) -> Result<Column, Error> {
        let (mut oid, mut typmod, mut collation) = (pg_sys::InvalidOid, -1, pg_sys::InvalidOid);
        // SAFETY: the name is a C string; the number is that of a column, or 0 if it has no such.
        let (number, generated) = unsafe {
            let number = pg_sys::get_attnum(self.oid(), name.as_ptr());
            if number <= 0 {
                return Err(Error::NoColumn {
                    column: printable(name.to_bytes()),
                    relation: self.printable_name(),
                });
            }
            pg_sys::get_atttypetypmodcoll(
                self.oid(),
                number,
                &raw mut oid,
                &raw mut typmod,
                &raw mut collation,
            );
            pg_sys::getBaseTypeAndTypmod(oid, &raw mut typmod);
            let generated = pg_sys::get_attgenerated(self.oid(), number) != 0;
            (number, generated)
        };
        let value_type = ValueType::of(oid).ok_or_else(|| Error::ColumnType {
            column: printable(name.to_bytes()),
            relation: self.printable_name(),
            // SAFETY: the oid is that of the column's type; the result is a C string.
            type_name: printable(&unsafe { bytes(pg_sys::format_type_be(oid)) }),
        })?;
        Ok(Column {
            // SAFETY: the name is a C string, and so is the result.
            name: unsafe { bytes(pg_sys::quote_identifier(name.as_ptr())) },
            number,
            value_type,
            type_oid: oid,
            typmod,
            generated,
        })
    }
}

impl Drop for Relation<'_> {
    fn drop(&mut self) {
        if !thread::panicking() {
            // SAFETY: open, and not referred to any more; the lock stays.
            unsafe {
                pg_sys::relation_close(self.relation.as_ptr(), pg_sys::NoLock as pg_sys::LOCKMODE);
            }
        }
    }
}

/// A column that can hold tokens.
pub(crate) struct Column {
    pub(crate) name: Identifier,
    pub(crate) number: i16,
    pub(crate) value_type: ValueType,
    /// The type as declared, which may be a domain.
    pub(crate) type_oid: pg_sys::Oid,
    /// The modifier of the type, or of the type that a domain is over: for instance, its length.
    typmod: i32,
    pub(crate) generated: bool,
}

impl Column {
    /// Returns the type, or the type that a domain is over, for a message. It includes the length,
    /// if there is one.
    pub(crate) fn printable_type(&self) -> String {
        let oid = self.value_type.oid;
        // SAFETY: the oid is that of a type; the result is a C string.
        printable(&unsafe { bytes(pg_sys::format_type_with_typemod(oid, self.typmod)) })
    }

    /// Returns how many characters fit, if the column is a varchar or char with a length, or a domain
    /// over one.
    pub(crate) fn max_chars(&self) -> Option<usize> {
        match self.value_type.oid {
            pg_sys::VARCHAROID | pg_sys::BPCHAROID => {
                let size = usize::try_from(self.typmod).ok()?;
                size.checked_sub(pg_sys::VARHDRSZ)
            }
            _ => None,
        }
    }
}

/// Returns the partitioned tables that a relation is a partition of, the nearest first.
fn ancestors(oid: pg_sys::Oid) -> Vec<pg_sys::Oid> {
    // SAFETY: no pointers but to a list of oids, which is freed with its memory context.
    unsafe {
        if !pg_sys::get_rel_relispartition(oid) {
            return Vec::new();
        }
        pgrx::memcx::current_context(|context| {
            let ancestors = pg_sys::get_partition_ancestors(oid);
            let ancestors =
                pgrx::list::List::<pg_sys::Oid>::downcast_ptr_in_memcx(ancestors, context);
            ancestors.map_or_else(Vec::new, |ancestors| ancestors.iter().copied().collect())
        })
    }
}

/// Tells whether a relation is in the schema `public`.
pub(crate) fn is_in_public(relation: pg_sys::Oid) -> bool {
    // SAFETY: a C string, or null where there is nothing of that oid.
    unsafe {
        let schema = pg_sys::get_namespace_name(pg_sys::get_rel_namespace(relation));
        !schema.is_null() && CStr::from_ptr(schema) == c"public"
    }
}
