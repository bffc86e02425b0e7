//! Whole columns: counting, rotating, encrypting and decrypting what they hold, and encrypting what
//! is written to them.
//!
//! | module       | what it holds |
//! |--------------|---------------|
//! | `census`     | `fernet_census`: counts tokens by key |
//! | `find`       | `fernet_find_columns`: finds the columns that hold tokens |
//! | `call`       | `CALL fernet_rotate_column` and its kin: their arguments, and their calls on other nodes |
//! | `convert`    | the pass: the looks, the writing, the proof |
//! | `workers`    | the first look, shared by background workers |
//! | `conversion` | what is done to a value |
//! | `trigger`    | `fernet_encrypt_trigger`: encrypts what is written |
//! | `batch`      | rows read and to be written, in memory |
//! | `table`      | what may be converted, and the SQL for it |
//! | `fit`        | whether a column takes what its values are to be converted to |
//! | `tally`      | counts by key |
//! | `progress`   | what the client is told: rate, share, time left, and the outcome |
//! | `citus`      | shards |
//! | `error`      | what can be refused here |
//! | `warning`    | what the client is warned of |

mod batch;
mod call;
mod census;
mod citus;
mod conversion;
mod convert;
mod error;
mod find;
mod fit;
mod progress;
mod table;
mod tally;
mod trigger;
mod warning;
mod workers;

use error::Error;
