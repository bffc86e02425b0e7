//! Keys from the output of the command in `fernet.keys_command`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::error::{Error, reason};
use crate::secret::Secret;
use crate::server;

const TIME_LIMIT: Duration = Duration::from_secs(10);

/// Runs a shell command and returns what it prints.
pub(crate) fn run(command: &OsStr) -> Result<Secret, Error> {
    output(command).map_err(|error| {
        server::end_if_interrupted();
        Error::KeyCommand {
            reason: reason(&error),
        }
    })
}

fn output(command: &OsStr) -> io::Result<Secret> {
    let deadline = Instant::now() + TIME_LIMIT;
    let mut text = Secret::new()?;
    let mut group = Group::spawn(command)?;
    let mut pipe = group
        .leader
        .stdout
        .take()
        .ok_or(io::ErrorKind::BrokenPipe)?;
    loop {
        // The wait may end early, and a pipe that is not readable would block.
        let readable = server::wait_readable(pipe.as_fd(), left(deadline)?)?;
        if readable && !text.read_from(&mut pipe)? {
            break;
        }
    }
    // A shell that has closed its output has little left to do.
    loop {
        if let Some(status) = group.try_wait()? {
            return check(status).map(|()| text);
        }
        server::sleep(left(deadline)?.min(Duration::from_millis(10)))?;
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "it took longer than 10 s",
        ));
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

/// A command and its children, as one process group. What still runs of it when this is dropped,
/// because the time is over or the statement cancelled, is killed.
struct Group {
    leader: Child,
    ended: bool,
}

impl Group {
    fn spawn(command: &OsStr) -> io::Result<Self> {
        // What it says on standard error would go to the server log, where a key must not be.
        let leader = Command::new("/bin/sh")
            .arg("-c")
            .arg(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self {
            leader,
            ended: false,
        })
    }

    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.leader.try_wait()?;
        self.ended = status.is_some();
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if self.ended {
            // Its id may be another group's by now.
            return;
        }
        // There is nobody to tell if it fails.
        let _ = kill_process_group(Pid::from_child(&self.leader), Signal::KILL);
        let _ = self.leader.wait();
    }
}
