//! How far a rotation has come, told to the client once a second at most.

use std::time::{Duration, Instant};

use crate::pg::report::notice;

/// Where a rotation stands in what it reads.
pub(crate) struct Progress {
    label: &'static str,
    started: Instant,
    told: Instant,
    rows: u64,
    /// How many blocks the tables have that have been read to their end.
    blocks: u64,
    blocks_in_all: u64,
}

impl Progress {
    pub(crate) fn new(label: &'static str, blocks_in_all: u64) -> Self {
        let started = Instant::now();
        Self {
            label,
            started,
            told: started,
            rows: 0,
            blocks: 0,
            blocks_in_all,
        }
    }

    /// Counts a row, which is in that block of its table.
    pub(crate) fn advance(&mut self, block: u32) {
        self.rows += 1;
        // To look at the clock for each row would take as long as some rows do.
        if !self.rows.is_multiple_of(256) || self.told.elapsed() < Duration::from_secs(1) {
            return;
        }
        self.told = Instant::now();
        let (blocks, time) = (self.blocks + u64::from(block), self.started.elapsed());
        let description = describe(self.rows, blocks, self.blocks_in_all, time);
        notice(format!("{}: {description}", self.label));
    }

    /// A table has come to its end.
    pub(crate) fn end_table(&mut self, blocks: u32) {
        self.blocks += u64::from(blocks);
    }
}

/// Describes it, for instance `2000 of about 10000 rows (20 %), 1000 rows/s, 8.0 s left`.
fn describe(rows: u64, blocks: u64, blocks_in_all: u64, time: Duration) -> String {
    let done = (blocks as f64 / blocks_in_all.max(1) as f64).clamp(0.0, 1.0);
    let (rows, seconds) = (rows as f64, time.as_secs_f64());
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
    fn progress_tells_what_is_left() {
        let two = Duration::from_secs(2);
        assert_eq!(
            describe(2000, 20, 100, two),
            "2000 of about 10000 rows (20 %), 1000 rows/s, 8.0 s left"
        );
        // The table has grown, and nothing is known yet.
        assert!(describe(2000, 101, 100, two).contains("(100 %), 1000 rows/s, 0.0 s left"));
        assert_eq!(describe(0, 0, 0, Duration::ZERO), "0 rows, 0 rows/s");
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
