//! What the client is told of a rotation: how far it has come, once a second at most, and what came of
//! it.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

use super::tally::Tally;
use super::warning;
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
fn describe_time(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0..10) => format!("{:.1} s", time.as_secs_f64()),
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// What came of a call.
#[derive(Default)]
pub(super) struct Report {
    /// What the last look has seen.
    pub(super) tally: Tally,
    /// How many tokens are under the first key because of the call.
    pub(super) rotated: i64,
    /// How many rows the last look has read.
    pub(super) rows: i64,
    /// The first values that no key opens or that hold no token, by their place.
    bad: Vec<String>,
    /// Why there is no proof, for instance who was still writing when `lock_timeout` ended the wait.
    pub(super) unfinished: Option<String>,
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.tally += other.tally;
        self.rotated += other.rotated;
        self.rows += other.rows;
        self.name_bad(other.bad);
        self.unfinished = self.unfinished.take().or(other.unfinished);
    }
}

impl Report {
    pub(super) fn new(tally: Tally) -> Self {
        Self {
            tally,
            ..Self::default()
        }
    }

    /// Names a value that no key opens, or that holds no token, if few are named yet.
    pub(super) fn name(&mut self, value: impl FnOnce() -> String) {
        if self.bad.len() < NAMED {
            self.bad.push(value());
        }
    }

    fn name_bad(&mut self, more: impl IntoIterator<Item = String>) {
        let unnamed = NAMED - self.bad.len();
        self.bad.extend(more.into_iter().take(unnamed));
    }

    /// Tells the client.
    pub(super) fn tell(&self, time: Duration) {
        let &Tally {
            unknown_key,
            not_a_token,
            ..
        } = &self.tally;
        let rate = self.rows as f64 / time.as_secs_f64().max(0.001);
        notice(format!(
            "rotated {} in {} in {}, {rate:.0} rows/s",
            counted(self.rotated, "token"),
            counted(self.rows, "row"),
            describe_time(time)
        ));
        if !self.bad.is_empty() {
            let is_full = self.bad.len() == NAMED;
            let more = if is_full && unknown_key + not_a_token > NAMED as i64 {
                "; and others"
            } else {
                ""
            };
            let places = format!("{}{more}.", self.bad.join("; "));
            warning::left_as_they_are(unknown_key, not_a_token, places).warn();
        }
        let old = self.tally.old();
        if let Some(reason) = &self.unfinished {
            warning::unfinished(reason, old).warn();
        } else if old > 0 {
            warning::still_old(old).warn();
        }
    }

    /// Returns what the procedure returns: rotated, current, unknown_key, not_a_token, nulls.
    pub(super) fn counts(&self) -> [i64; 5] {
        let tally = &self.tally;
        [
            self.rotated,
            tally.current() - self.rotated,
            tally.unknown_key,
            tally.not_a_token,
            tally.nulls,
        ]
    }

    /// Writes it down for the node that has called this one: what was rotated and read, the tally, a line
    /// that says why there is no proof, then the values by line.
    pub(super) fn to_text(&self) -> String {
        let done = format!("{} {}", self.rotated, self.rows);
        let unfinished = self.unfinished.clone().unwrap_or_default();
        let lines = [done, self.tally.to_text(), unfinished].into_iter();
        // A name may hold a line break.
        let lines = lines
            .chain(self.bad.iter().cloned())
            .map(|line| line.replace('\n', " "));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Reads what [`to_text`](Self::to_text) has written.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let (rotated, rows) = lines.next()?.split_once(' ')?;
        let tally = Tally::parse(lines.next()?)?;
        let unfinished = lines.next().filter(|line| !line.is_empty());
        Some(Self {
            tally,
            rotated: rotated.parse().ok()?,
            rows: rows.parse().ok()?,
            unfinished: unfinished.map(str::to_owned),
            bad: lines.map(str::to_owned).collect(),
        })
    }
}

/// How many bad values are named.
const NAMED: usize = 5;

/// Describes a number of things.
pub(super) fn counted(number: i64, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
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
