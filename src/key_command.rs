//! Keys from the output of the command in `fernet.keys_command`.

use std::cell::Cell;
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
    output(command).map_err(|error| Error::KeyCommand {
        reason: reason(&error),
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
        let readable = server::wait_readable(pipe.as_fd(), left(deadline)?);
        if readable && !text.read_from(&mut pipe)? {
            break;
        }
    }
    // A shell that has closed its output has little left to do.
    loop {
        if let Some(status) = group.try_wait()? {
            return check(status).map(|()| text);
        }
        server::sleep(left(deadline)?.min(Duration::from_millis(10)));
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

thread_local! {
    /// What runs now.
    static RUNNING: Cell<Option<Pid>> = const { Cell::new(None) };
    static IS_KILLED_AT_EXIT: Cell<bool> = const { Cell::new(false) };
}

/// A command and its children, as one process group. What still runs of it when this is dropped,
/// because the time is over or the statement cancelled, is killed. So it is at the end of the server
/// process, which drops nothing.
struct Group {
    leader: Child,
}

impl Group {
    fn spawn(command: &OsStr) -> io::Result<Self> {
        if !IS_KILLED_AT_EXIT.replace(true) {
            server::at_exit(|| {
                kill_running();
            });
        }
        // What it says on standard error would go to the server log, where a key must not be.
        let leader = Command::new("/bin/sh")
            .arg("-c")
            .arg(command)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        RUNNING.set(Some(Pid::from_child(&leader)));
        Ok(Self { leader })
    }

    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.leader.try_wait()?;
        if status.is_some() {
            // Its id may be another group's by now.
            RUNNING.set(None);
        }
        Ok(status)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if kill_running() {
            // There is nobody to tell if it fails.
            let _ = self.leader.wait();
        }
    }
}

/// Tells whether there was something to kill.
fn kill_running() -> bool {
    RUNNING
        .take()
        .is_some_and(|group| kill_process_group(group, Signal::KILL).is_ok())
}
