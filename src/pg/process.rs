//! Programs that the server runs, with all their descendants.
//!
//! Between this process and a program there is a keeper, a fork of this process. A process that loses
//! its parent becomes a child of the keeper. The keeper kills and reaps all that is left when the
//! program has ended, when this process has ended, or when this process wants the program to end. So
//! nothing outlives the program, and nothing becomes a child of process 1. If that is the postmaster,
//! as in a container, it would take the end of an unknown child for the crash of a server process. All
//! that it can see is the end of the keeper, always with status 0.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, RawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::panic::{self, AssertUnwindSafe};
use std::process::{Command, ExitStatus, Stdio};
use std::ptr;

use pgrx::prelude::*;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, getppid, kill_process, kill_process_group,
    set_child_subreaper, set_parent_process_death_signal, setpgid, wait, waitpid,
};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

/// A program that runs through a shell. It ends when this is dropped.
pub(crate) struct Program {
    keeper: Pid,
    /// The pipe to which the keeper writes how the program ended. The keeper is the last to close
    /// it.
    report: PipeReader,
}

impl Program {
    /// Starts a shell command without input, and also returns the pipe with its output. Its standard
    /// error is discarded.
    pub(crate) fn start(command: &OsStr) -> io::Result<(Self, PipeReader)> {
        let (output, output_end) = io::pipe()?;
        let (report, report_end) = io::pipe()?;
        let server = getpid();
        // All signals are blocked first, so that none ever reaches a handler of the server's in the
        // keeper.
        let mask = Signals::all().block();
        // SAFETY: a server process has a single thread, so its copy may go on. The copy never
        // returns from here. It calls only functions of the server that the server's own forks call
        // first.
        let forked = unsafe { libc::fork() };
        if forked == 0 {
            keep(command, output_end, report_end, server, mask);
        }
        let error = io::Error::last_os_error();
        mask.restore();
        let keeper = Pid::from_raw(forked).filter(|_| forked > 0).ok_or(error)?;
        Ok((Self { keeper, report }, output))
    }

    /// Becomes readable when the program and all its descendants have ended.
    pub(crate) fn report(&self) -> &PipeReader {
        &self.report
    }

    /// Waits until the program has ended, and returns how it ended.
    pub(crate) fn end(mut self) -> io::Result<ExitStatus> {
        let mut report = [0; size_of::<i32>()];
        self.report
            .read_exact(&mut report)
            .map_err(|_| io::Error::other("the process that watched it was killed"))?;
        match i32::from_ne_bytes(report) {
            error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
            status => Ok(ExitStatus::from_raw(status)),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        /// A process with other rights than ours cannot be killed. Its keeper stays with it, and is
        /// not waited for any longer.
        const GRACE: Timespec = Timespec {
            tv_sec: 2,
            tv_nsec: 0,
        };
        // Nobody can be told if any of this fails.
        let _ = kill_process(self.keeper, Signal::TERM);
        let mut closed = [PollFd::new(&self.report, PollFlags::HUP)];
        let ended = rustix::io::retry_on_intr(|| poll(&mut closed, Some(&GRACE)));
        if ended.is_ok_and(|ended| ended > 0) {
            let _ = rustix::io::retry_on_intr(|| waitpid(Some(self.keeper), WaitOptions::empty()));
        }
    }
}

/// What the keeper does, from the fork to its end.
fn keep(command: &OsStr, output: PipeWriter, report: PipeWriter, server: Pid, mask: Signals) -> ! {
    // Nothing may return or unwind into the copy of the server's stack.
    let kept = panic::catch_unwind(AssertUnwindSafe(|| {
        let ended = become_keeper(&[output.as_raw_fd(), report.as_raw_fd()], server)
            .and_then(|()| run(command, output, mask));
        end_descendants();
        let status = ended.unwrap_or_else(|error| -error.raw_os_error().unwrap_or(libc::EIO));
        let _ = (&report).write_all(&status.to_ne_bytes());
    }));
    drop(kept);
    // SAFETY: ends this process, and runs none of what the server has registered for its own end.
    unsafe { libc::_exit(0) }
}

/// Lets go of everything that belongs to the server, and becomes the parent of descendants that
/// lose theirs.
fn become_keeper(files: &[RawFd], server: Pid) -> io::Result<()> {
    // Signals that the server sends to the process group of one of its processes must not reach the
    // keeper.
    setpgid(None, None)?;
    set_child_subreaper(Some(getpid()))?;
    set_parent_process_death_signal(Some(Signal::TERM))?;
    if getppid() != Some(server) {
        // The server process ended before we asked to be told.
        return Err(io::Error::from_raw_os_error(libc::ESRCH));
    }
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    drop(null);
    close_all_but(files);
    // SAFETY: the server's own children that do without its shared memory do the same. The title is a
    // C string.
    unsafe {
        pg_sys::PGSharedMemoryDetach();
        pg_sys::init_ps_display(c"fernet.keys_command".as_ptr());
    }
    Ok(())
}

/// Closes all files except the standard ones and `files`. Otherwise the program would inherit the
/// client's socket and whatever else is open.
fn close_all_but(files: &[RawFd]) {
    let mut kept = files.to_vec();
    kept.sort_unstable();
    kept.push(RawFd::MAX);
    let mut first = libc::STDERR_FILENO + 1;
    for kept in kept {
        close_range(first, kept - 1);
        first = kept.saturating_add(1);
    }
}

fn close_range(first: RawFd, last: RawFd) {
    /// More than a server process may have with the default of max_files_per_process.
    const MANY: RawFd = 65_536;
    if first > last {
        return;
    }
    // SAFETY: nothing uses these files any more. The C library has a function for it only since glibc
    // 2.34, Linux since 5.9.
    unsafe {
        if libc::syscall(libc::SYS_close_range, first, last, 0) != 0 {
            for file in first..=last.min(MANY) {
                libc::close(file);
            }
        }
    }
}

/// Runs the command until it ends or this process gets a SIGTERM, and returns its status.
fn run(command: &OsStr, output: PipeWriter, mask: Signals) -> io::Result<i32> {
    let mut shell = Command::new("/bin/sh");
    shell
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(Stdio::null())
        // So that a signal that it sends to its own group does not reach its keeper.
        .process_group(0);
    // SAFETY: what is called between fork and exec may be called there.
    unsafe {
        shell.pre_exec(move || {
            mask.restore();
            Ok(())
        });
    }
    // This drops our end of its output.
    let shell = { shell }.spawn()?;
    let awaited = Signals::of(&[libc::SIGCHLD, libc::SIGTERM]);
    loop {
        while let Some((child, status)) = wait(WaitOptions::NOHANG)? {
            if child == Pid::from_child(&shell) {
                return Ok(status.as_raw());
            }
        }
        if awaited.wait() == libc::SIGTERM {
            // Kills the group, for systems without /proc. The shell has not been reaped yet, so the
            // group is still its own.
            let _ = kill_process_group(Pid::from_child(&shell), Signal::KILL);
            return Err(io::Error::from_raw_os_error(libc::EINTR));
        }
    }
}

/// Kills and reaps all descendants: first the children, then their children, which have become
/// ours.
fn end_descendants() {
    while let Ok(reaped) = wait(WaitOptions::NOHANG) {
        if reaped.is_none() {
            // Descendants that cannot be found or killed end in their own time, and the keeper
            // after them.
            for child in children().unwrap_or_default() {
                let _ = kill_process(child, Signal::KILL);
            }
            let _ = wait(WaitOptions::empty());
        }
    }
}

/// Returns children of this process. Some may be missing while others end.
fn children() -> io::Result<Vec<Pid>> {
    let own = fs::read_to_string("/proc/self/status")?;
    // /proc may belong to an outer namespace with other process ids. A status there lists the ids
    // of inner namespaces after its own.
    let depth = ids(&own, "NSpid:").count().saturating_sub(1);
    let in_ours = |status: &str| ids(status, "NSpid:").nth(depth).and_then(Pid::from_raw);
    // The kernel's list also has those that hidepid hides from us.
    if let Ok(list) = fs::read_to_string("/proc/thread-self/children") {
        let children = list.split_ascii_whitespace().filter_map(|id| match depth {
            0 => id.parse().ok().and_then(Pid::from_raw),
            _ => in_ours(&fs::read_to_string(format!("/proc/{id}/status")).ok()?),
        });
        return Ok(children.collect());
    }
    // Not every kernel has that list.
    let mut children = Vec::new();
    for entry in fs::read_dir("/proc")? {
        // Not every entry is a process, and one may have ended.
        if let Ok(status) = fs::read_to_string(entry?.path().join("status"))
            && ids(&status, "PPid:").eq(ids(&own, "Pid:"))
        {
            children.extend(in_ours(&status));
        }
    }
    Ok(children)
}

/// Returns the numbers in a line of a process's status.
fn ids<'a>(status: &'a str, name: &str) -> impl Iterator<Item = i32> + use<'a> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let numbers = line.unwrap_or_default().split_ascii_whitespace();
    numbers.filter_map(|number| number.parse().ok())
}

/// A set of signals.
struct Signals(libc::sigset_t);

impl Signals {
    fn all() -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: it initialises the set.
        unsafe {
            libc::sigfillset(set.as_mut_ptr());
            Self(set.assume_init())
        }
    }

    fn of(signals: &[i32]) -> Self {
        let mut set = MaybeUninit::uninit();
        // SAFETY: the first initialises the set.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for &signal in signals {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            Self(set.assume_init())
        }
    }

    /// Blocks these signals, and returns the set that was blocked before.
    fn block(&self) -> Self {
        let mut before = Self::of(&[]);
        // SAFETY: both are sets.
        unsafe { libc::sigprocmask(libc::SIG_BLOCK, &self.0, &mut before.0) };
        before
    }

    /// Makes this the set of blocked signals.
    fn restore(&self) {
        // SAFETY: it is a set.
        unsafe { libc::sigprocmask(libc::SIG_SETMASK, &self.0, ptr::null_mut()) };
    }

    /// Waits for one of these signals, which are blocked.
    fn wait(&self) -> i32 {
        let mut signal = 0;
        // SAFETY: it is a set. It fails only for a set with a number that is no signal.
        unsafe { libc::sigwait(&self.0, &mut signal) };
        signal
    }
}
