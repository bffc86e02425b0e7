//! Whole columns: what they hold, their rotation in batches, and what is written to them.
//!
//! | module     | what it holds |
//! |------------|---------------|
//! | `census`   | `fernet_census`: counts tokens by key |
//! | `find`     | `fernet_find_columns`: finds the columns that hold tokens |
//! | `call`     | `CALL fernet_rotate_column`: its arguments, and its calls on other nodes |
//! | `convert`  | the rotation: the looks, the writing, the proof |
//! | `trigger`  | `fernet_encrypt_trigger`: encrypts what is written |
//! | `batch`    | rows read and to be written, in memory |
//! | `table`    | what may be rotated, and the SQL for it |
//! | `tally`    | counts by key |
//! | `progress` | what the client is told: rate, share, time left, and the outcome |
//! | `citus`    | shards |
//! | `error`    | what can be refused here |
//! | `warning`  | what the client is warned of |

mod batch;
mod call;
mod census;
mod citus;
mod convert;
mod error;
mod find;
mod progress;
mod table;
mod tally;
mod trigger;
mod warning;

use error::Error;
