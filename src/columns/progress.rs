//! What the client is told of a conversion: its progress, at most once a second, and its outcome.

use std::ops::AddAssign;
use std::time::{Duration, Instant};

use super::conversion::Conversion;
use super::tally::Tally;
use super::warning;
use crate::pg::report::notice;

/// The progress of a look.
pub(crate) struct Progress {
    /// What is being done. `None` sends no notices.
    label: Option<&'static str>,
    started: Instant,
    told: Instant,
    rows: u64,
    /// How many blocks the tables that were read to their end have.
    blocks: u64,
    blocks_in_all: u64,
}

impl Progress {
    pub(crate) fn new(label: Option<&'static str>, blocks_in_all: u64) -> Self {
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

    /// Counts a row in block `block` of the current table.
    pub(crate) fn advance(&mut self, block: u32) {
        self.rows += 1;
        // Reading the clock takes as long as some rows do, so it is not read for each row.
        if self.rows.is_multiple_of(256) {
            self.tell(self.rows, self.blocks + u64::from(block));
        }
    }

    /// Reports the progress, unless it was reported in the last second.
    pub(crate) fn tell(&mut self, rows: u64, blocks: u64) {
        if let Some(label) = self.label
            && self.told.elapsed() >= Duration::from_secs(1)
        {
            self.told = Instant::now();
            let description = describe(rows, blocks, self.blocks_in_all, self.started.elapsed());
            notice(format!("{label}: {description}"));
        }
    }

    /// Counts a table that was read to its end.
    pub(crate) fn end_table(&mut self, blocks: u32) {
        self.blocks += u64::from(blocks);
    }
}

/// Describes progress, for instance `2000 of about 10000 rows (20 %), 1000 rows/s, 8.0 s left`.
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

/// Describes a time with its two largest units.
fn describe_time(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0..10) => format!("{:.1} s", time.as_secs_f64()),
        (0, 0, s) => format!("{s} s"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

/// The outcome of a call.
#[derive(Default)]
pub(super) struct Report {
    /// What the last look has counted.
    pub(super) tally: Tally,
    /// How many tokens the call has rotated, or values it has encrypted or decrypted.
    pub(super) done: i64,
    /// How many rows the last look has read.
    pub(super) rows: i64,
    /// How many tokens or values the last look has seen that are still to be converted.
    pub(super) left: i64,
    /// How many tokens that a key opens are not converted, since they have text beside them.
    pub(super) in_text: i64,
    /// The first values that were left, each with its place and the reason.
    bad: Vec<String>,
    /// Why there is no proof: for instance, which transaction was still writing when `lock_timeout`
    /// ended the wait.
    pub(super) unfinished: Option<String>,
}

impl AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.tally += other.tally;
        self.done += other.done;
        self.rows += other.rows;
        self.left += other.left;
        self.in_text += other.in_text;
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

    /// Names a value that was left, unless enough are named already.
    pub(super) fn name(&mut self, value: impl FnOnce() -> String) {
        if self.bad.len() < NAMED {
            self.bad.push(value());
        }
    }

    fn name_bad(&mut self, more: impl IntoIterator<Item = String>) {
        let unnamed = NAMED - self.bad.len();
        self.bad.extend(more.into_iter().take(unnamed));
    }

    /// Sends the warnings to the client.
    pub(super) fn tell(&self, conversion: Conversion, time: Duration) {
        let (done, thing) = conversion.done();
        let rate = self.rows as f64 / time.as_secs_f64().max(0.001);
        notice(format!(
            "{done} {} in {} in {}, {rate:.0} rows/s",
            counted(self.done, thing),
            counted(self.rows, "row"),
            describe_time(time)
        ));
        if !self.bad.is_empty() {
            let unknown_key = self.tally.unknown_key;
            let other = match conversion {
                Conversion::Rotate { .. } => self.tally.not_a_token,
                Conversion::Encrypt | Conversion::Decrypt => self.in_text,
            };
            let is_full = self.bad.len() == NAMED;
            let more = if is_full && unknown_key + other > NAMED as i64 {
                "; and others"
            } else {
                ""
            };
            let places = format!("{}{more}.", self.bad.join("; "));
            warning::left_as_they_are(conversion, unknown_key, other, places).warn();
        }
        if let Some(reason) = &self.unfinished {
            warning::unfinished(conversion, reason, self.left).warn();
        } else if self.left > 0 {
            warning::still_left(conversion, self.left).warn();
        }
    }

    /// Returns what the procedure returns.
    pub(super) fn counts(&self, conversion: Conversion) -> [i64; 5] {
        let (done, tally) = (self.done, &self.tally);
        let [second, third, fourth] = match conversion {
            Conversion::Rotate { .. } => {
                [tally.current() - done, tally.unknown_key, tally.not_a_token]
            }
            Conversion::Encrypt => [tally.current() - done, tally.old(), tally.unknown_key],
            // A plaintext may look like a token that no key opens.
            Conversion::Decrypt => {
                let before = tally.not_a_token - done;
                [self.in_text, tally.unknown_key, before.max(0)]
            }
        };
        [done, second, third, fourth, tally.nulls]
    }

    /// Writes it down for the node that has called this one. The lines are: the numbers of values
    /// converted, rows read, values left and tokens in text; the tally; why there is no proof; and then
    /// one line for each value.
    pub(super) fn to_text(&self) -> String {
        let done = [self.done, self.rows, self.left, self.in_text].map(|count| count.to_string());
        let done = done.join(" ");
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
        let counts: Option<Vec<_>> = lines.next()?.split(' ').map(|n| n.parse().ok()).collect();
        let [done, rows, left, in_text] = counts?.try_into().ok()?;
        let tally = Tally::parse(lines.next()?)?;
        let unfinished = lines.next().filter(|line| !line.is_empty());
        Some(Self {
            tally,
            done,
            rows,
            left,
            in_text,
            unfinished: unfinished.map(str::to_owned),
            bad: lines.map(str::to_owned).collect(),
        })
    }
}

/// How many of the values that were left are named.
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
        // The table has grown; the total is not known yet.
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
