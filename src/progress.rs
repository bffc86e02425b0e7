//! How large a batch is, and how far a scan has come: arithmetic alone.

use std::time::Duration;

/// The most rows that a block can hold, of 8 kB and without a column.
const ROWS_PER_BLOCK_MAX: f64 = 291.0;

/// How many rows the blocks of a table hold, as the blocks that were read last show.
pub(crate) struct Density {
    rows_per_block: f64,
}

impl Density {
    /// Starts from an estimate. Without one, blocks are taken to be as full as can be.
    pub(crate) fn new(estimate: Option<f64>) -> Self {
        Self {
            rows_per_block: estimate.unwrap_or(ROWS_PER_BLOCK_MAX),
        }
    }

    /// Returns how many blocks hold about as many rows; one at least.
    pub(crate) fn blocks(&self, rows: u64) -> u32 {
        // The cast saturates.
        (rows as f64 / self.rows_per_block).ceil().max(1.0) as u32
    }

    /// Learns how many rows some blocks held. Where they are emptier than expected, the next batch
    /// is larger, but at most twice.
    pub(crate) fn learn(&mut self, rows: u64, blocks: u32) {
        let seen = rows as f64 / f64::from(blocks.max(1));
        let least = (self.rows_per_block / 2.0).max(1.0 / 64.0);
        self.rows_per_block = seen.clamp(least, ROWS_PER_BLOCK_MAX.max(least));
    }
}

/// How far a scan has come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Progress {
    pub(crate) rows: u64,
    pub(crate) blocks: u64,
    pub(crate) blocks_in_all: u64,
    pub(crate) time: Duration,
}

impl Progress {
    /// Describes it, for instance `2000 of about 10000 rows (20 %), 1000 rows/s, 8.0 s left`.
    pub(crate) fn describe(&self) -> String {
        let done = (self.blocks as f64 / self.blocks_in_all.max(1) as f64).clamp(0.0, 1.0);
        let (rows, seconds) = (self.rows as f64, self.time.as_secs_f64());
        let rate = rows / seconds.max(0.001);
        if done == 0.0 {
            return format!("{rows} rows, {rate:.0} rows/s");
        }
        format!(
            "{rows} of about {:.0} rows ({:.0} %), {rate:.0} rows/s, {} left",
            rows / done,
            (done * 100.0).floor(),
            describe_time(Duration::from_secs_f64(seconds / done - seconds)),
        )
    }
}

/// Describes a time with the two units that matter.
pub(crate) fn describe_time(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0..10) => format!("{:.1} s", time.as_secs_f64()),
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_takes_as_many_blocks_as_its_rows_need() {
        assert_eq!(Density::new(Some(50.0)).blocks(10_000), 200);
        assert_eq!(Density::new(Some(50.0)).blocks(10_001), 201);
        assert_eq!(Density::new(Some(50.0)).blocks(1), 1);
        assert_eq!(Density::new(None).blocks(10_000), 35);
        assert_eq!(Density::new(Some(0.001)).blocks(u64::MAX), u32::MAX);
    }

    #[test]
    fn a_batch_shrinks_at_once_and_grows_by_and_by() {
        let mut density = Density::new(Some(50.0));
        density.learn(20_000, 100);
        assert_eq!(density.blocks(10_000), 50);
        density.learn(0, 50);
        assert_eq!(density.blocks(10_000), 100);
        for _ in 0..100 {
            density.learn(0, 100);
        }
        assert_eq!(density.blocks(10_000), 640_000);
        density.learn(29_100, 100);
        assert_eq!(density.blocks(10_000), 35);
    }

    #[test]
    fn progress_tells_what_is_left() {
        let mut progress = Progress {
            rows: 2000,
            blocks: 20,
            blocks_in_all: 100,
            time: Duration::from_secs(2),
        };
        assert_eq!(
            progress.describe(),
            "2000 of about 10000 rows (20 %), 1000 rows/s, 8.0 s left"
        );
        // The table has grown, and nothing is known yet.
        progress.blocks = 101;
        assert!(
            progress
                .describe()
                .contains("(100 %), 1000 rows/s, 0.0 s left")
        );
        progress = Progress {
            rows: 0,
            blocks: 0,
            blocks_in_all: 0,
            time: Duration::ZERO,
        };
        assert_eq!(progress.describe(), "0 rows, 0 rows/s");
    }

    #[test]
    fn times_have_two_units() {
        let described = [59, 60, 3599, 3600, 90_061].map(|s| describe_time(Duration::from_secs(s)));
        let expected = [
            "59 s",
            "1 min 0 s",
            "59 min 59 s",
            "1 h 0 min",
            "25 h 1 min",
        ];
        assert_eq!(described, expected);
    }
}
