//! Arrays: the elements of an array, and a new array of the same shape.

use std::ffi::{c_char, c_int};
use std::{ptr, slice};

use pgrx::prelude::*;

use super::domain::Domain;

/// A copy of an array in the current memory context, and its elements.
pub(super) struct Array {
    array: *mut pg_sys::ArrayType,
    element_type: pg_sys::Oid,
    length: i16,
    is_by_value: bool,
    alignment: c_char,
    elements: *mut pg_sys::Datum,
    nulls: *mut bool,
    count: c_int,
}

impl Array {
    /// # Safety
    /// The datum must be an array.
    pub(super) unsafe fn open(datum: pg_sys::Datum) -> Self {
        // SAFETY: what is an array begins with such a header. The server fills in the rest.
        unsafe {
            let array: *mut pg_sys::ArrayType =
                pg_sys::pg_detoast_datum(datum.cast_mut_ptr()).cast();
            let mut opened = Self {
                array,
                element_type: (*array).elemtype,
                length: 0,
                is_by_value: false,
                alignment: 0,
                elements: ptr::null_mut(),
                nulls: ptr::null_mut(),
                count: 0,
            };
            pg_sys::get_typlenbyvalalign(
                opened.element_type,
                &raw mut opened.length,
                &raw mut opened.is_by_value,
                &raw mut opened.alignment,
            );
            pg_sys::deconstruct_array(
                array,
                opened.element_type,
                c_int::from(opened.length),
                opened.is_by_value,
                opened.alignment,
                &raw mut opened.elements,
                &raw mut opened.nulls,
                &raw mut opened.count,
            );
            opened
        }
    }

    /// Returns each element that is not null.
    pub(super) fn elements(&mut self) -> impl Iterator<Item = &mut pg_sys::Datum> {
        let count = self.count as usize;
        // SAFETY: both arrays have that many members, if there are any.
        let (elements, nulls) = unsafe {
            match count {
                0 => (&mut [][..], &[][..]),
                _ => (
                    slice::from_raw_parts_mut(self.elements, count),
                    slice::from_raw_parts(self.nulls, count),
                ),
            }
        };
        let elements = elements.iter_mut().zip(nulls);
        elements
            .filter(|(_, is_null)| !**is_null)
            .map(|(element, _)| {
                // There may be many elements.
                pgrx::check_for_interrupts!();
                element
            })
    }

    /// Returns the domain that new elements must be checked by, if they are of a domain.
    pub(super) fn domain(&self) -> Option<Domain> {
        Domain::of(self.element_type)
    }

    /// Makes an array of the same shape from the current elements.
    ///
    /// # Safety
    /// The elements must be of the array's element type.
    pub(super) unsafe fn close(self) -> pg_sys::Datum {
        // SAFETY: the header is followed by the number of elements in each dimension, and then by
        // their lower bounds.
        unsafe {
            let dimensions = (*self.array).ndim;
            let sizes: *mut c_int = self.array.add(1).cast();
            let array = pg_sys::construct_md_array(
                self.elements,
                self.nulls,
                dimensions,
                sizes,
                sizes.add(dimensions as usize),
                self.element_type,
                c_int::from(self.length),
                self.is_by_value,
                self.alignment,
            );
            array.into()
        }
    }
}
