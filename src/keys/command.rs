//! Keys from the output of the command in `fernet.keys_command`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd as _;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use super::error::{Error, Reason};
use super::secret::Secret;
use crate::pg::process::Program;
use crate::pg::report::reason;
use crate::pg::server;

const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Runs a shell command until it ends, and returns what it prints.
pub(super) fn run(command: &OsStr) -> Result<Secret, Error> {
    output(command).map_err(|error| Error::Command {
        reason: reason(&error),
    })
}

fn output(command: &OsStr) -> io::Result<Secret> {
    let deadline = Instant::now() + TIME_LIMIT;
    let mut text = Secret::new()?;
    let (program, mut output) = Program::start(command)?;
    loop {
        // The wait may end early, and reading a pipe that has nothing to read would block.
        let readable = server::wait_readable(output.as_fd(), left(deadline)?);
        if readable && !text.read_from(&mut output)? {
            break;
        }
    }
    while !server::wait_readable(program.report().as_fd(), left(deadline)?) {}
    check(program.end()?).map(|()| text)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Reason::TimedOut.into());
    }
    Ok(left)
}

fn check(status: ExitStatus) -> io::Result<()> {
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("it ended with {status}")))
    }
}
