//! All that touches the server, including all unsafe code.
//!
//! | module           | what it holds |
//! |------------------|---------------|
//! | `value`          | text and bytea, in and out |
//! | `document`       | JSON, in and out |
//! | `value_type`     | the types whose values can hold tokens, and where in such a value they may be |
//! | `jsonb`          | the strings of jsonb documents, and documents with others in their places |
//! | `array`          | arrays: the elements of one, and another one of the same shape |
//! | `domain`         | domains: whether they take a value |
//! | `name`           | names, in and out; names and literals as SQL has them |
//! | `encoding`       | from the encoding of the database to UTF-8, and back |
//! | `relation`       | relations: open, inspect, name |
//! | `catalogs`       | which extensions there are, and whether somebody has changed the catalogs |
//! | `row`, `slot`    | versions of rows; one, read or locked by its place |
//! | `spi`            | queries |
//! | `new_values`     | new values for rows, as a table that queries can read |
//! | `trigger`        | rows that are about to be written, as a trigger gets them |
//! | `transaction`    | commits, and waiting for the transactions of others |
//! | `subtransaction` | subtransactions, and the errors that end them |
//! | `setting`        | settings of our own, and their hooks |
//! | `guc`            | changes of the server's settings, for a while or in another process |
//! | `server`         | what else the server is asked for |
//! | `worker`         | background workers that do a part of a statement |
//! | `segment`        | the memory that they share with it |
//! | `process`        | programs that the server runs, with all their descendants |
//! | `random`         | initialisation vectors |
//! | `memory`         | what Rust allocates, with a reserve for where the system has no more |
//! | `memory_context` | memory of the server's that is freed all at once |
//! | `log`            | the server log: messages before they are written |
//! | `literal`        | string literals in SQL, and in messages about it |
//! | `report`         | errors, warnings and notices as the server has them |
//! | `error_context`  | what is called with each message, to add to it |
//! | `unguarded`      | what raises no error |
//! | `error`          | what the server, or the operating system, does not give |

mod array;
pub(crate) mod catalogs;
pub(crate) mod document;
pub(crate) mod domain;
pub(crate) mod encoding;
mod error;
pub(crate) mod error_context;
mod guc;
mod jsonb;
pub(crate) mod literal;
pub(crate) mod log;
pub(crate) mod memory;
mod memory_context;
pub(crate) mod name;
pub(crate) mod new_values;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod relation;
pub(crate) mod report;
pub(crate) mod row;
mod segment;
pub(crate) mod server;
pub(crate) mod setting;
pub(crate) mod slot;
pub(crate) mod spi;
pub(crate) mod subtransaction;
pub(crate) mod transaction;
pub(crate) mod trigger;
mod unguarded;
pub(crate) mod value;
pub(crate) mod value_type;
pub(crate) mod worker;

pub(crate) use error::Error;
pub(crate) use report::Report;
