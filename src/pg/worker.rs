//! Background workers that do a part of a statement of this process: in its database, as its role, and
//! with its libraries and settings.
//!
//! What they need is in a segment of shared memory. So is a queue for each, through which it sends its
//! errors and notices. Whatever ends the statement, this process detaches from the segment, and before
//! that it ends the workers: none outlives the statement.

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

use super::memory::ensure_room;
use super::memory_context::memory_context;
use super::segment::{Part, QUEUE_SIZE, Segment};
use super::subtransaction::in_subtransaction;
use super::{Error, guc, server};

// Functions that the bindings lack, or have only with a guard that is of no use in a signal
// handler.
unsafe extern "C-unwind" {
    #[cfg(not(feature = "pg19"))]
    fn die(signal: c_int);
    #[cfg(feature = "pg19")]
    fn die(signal: c_int, sender: *const pg_sys::pg_signal_info);
    fn pq_redirect_to_shm_mq(segment: *mut pg_sys::dsm_segment, queue: *mut pg_sys::shm_mq_handle);
    fn pq_parse_errornotice(message: pg_sys::StringInfo, error: *mut pg_sys::ErrorData);
}

/// Workers that were started, and what is shared with them. The workers end when this is dropped.
pub(crate) struct Workers<T> {
    segment: Segment,
    shared: NonNull<T>,
    /// The queues of the workers that have not said that they are done.
    queues: Vec<*mut pg_sys::shm_mq_handle>,
    handles: Box<Handles>,
    /// The memory that the server allocates for these, and for one message.
    memory: pg_sys::MemoryContext,
    memory_of_message: pg_sys::MemoryContext,
}

type Handles = Vec<*mut pg_sys::BackgroundWorkerHandle>;

/// What a worker has to know before it connects to the database.
#[repr(C)]
struct Header {
    database: pg_sys::Oid,
    /// The role that has logged in, whatever the current role is.
    user: pg_sys::Oid,
    has_ended: AtomicBool,
}

/// What a worker sends once it is done, in place of an error or a notice.
static DONE: u8 = b'X';

impl<T: Sync> Workers<T> {
    /// Starts `count` workers, or as many as the server can have. Each calls `function` of this library,
    /// which calls [`run`]. The server shows `statement` as theirs; the caller's own statement may hold
    /// secrets. Private settings of the session are not handed over.
    ///
    /// Must not be called in a transaction for which the workers might have to wait.
    ///
    /// # Errors
    /// If the server lacks the shared memory: its message.
    pub(crate) fn start(
        function: &CStr,
        count: usize,
        shared: T,
        statement: &CStr,
        task: &CStr,
        is_private: impl Fn(&CStr) -> bool,
    ) -> Result<Self, String> {
        const NAME: &CStr = c"pg_fernet workers";
        let settings = guc::of_session(is_private);
        let texts = [statement, task].map(CStr::to_bytes_with_nul);
        let texts = [texts.concat(), settings].concat();
        // SAFETY: no arguments, no side effects.
        let libraries = unsafe { pg_sys::EstimateLibraryStateSpace() };
        let sizes = [
            size_of::<Header>(),
            size_of::<T>(),
            libraries,
            texts.len(),
            QUEUE_SIZE * count,
        ];
        // SAFETY: the parent is a memory context.
        let memory = unsafe { memory_context(pg_sys::TopMemoryContext, NAME) };
        // The segment comes last: nobody lets go of it before this is done.
        let made = in_subtransaction(
            |_| true,
            // SAFETY: as above.
            || (unsafe { memory_context(memory, NAME) }, Segment::new(sizes)),
        );
        let (memory_of_message, segment) = match made {
            Ok(made) => made,
            Err(failure) => {
                // SAFETY: nothing in it is in use.
                unsafe { pg_sys::MemoryContextDelete(memory) };
                if failure.is_lack_of_resources() {
                    return Err(failure.message());
                }
                failure.raise()
            }
        };
        // SAFETY: each part is given the size that the segment was made for.
        unsafe {
            segment.find::<Header>(Part::Header).write(Header {
                database: pg_sys::MyDatabaseId,
                user: pg_sys::GetAuthenticatedUserId(),
                has_ended: AtomicBool::new(false),
            });
            let shared_part = segment.find::<T>(Part::Shared);
            shared_part.write(shared);
            pg_sys::SerializeLibraryState(libraries, segment.find(Part::Libraries));
            ptr::copy_nonoverlapping(texts.as_ptr(), segment.find(Part::Texts), texts.len());

            let mut workers = Self {
                segment,
                shared: NonNull::new(shared_part).expect("it is in the segment"),
                queues: Vec::with_capacity(count),
                handles: Box::new(Vec::with_capacity(count)),
                memory,
                memory_of_message,
            };
            // The queues are attached later, so that they are detached first: a worker without a
            // receiver does not wait for one before it ends.
            let handles = &raw mut *workers.handles;
            pg_sys::on_dsm_detach(segment.as_ptr(), Some(end), pg_sys::Datum::from(handles));
            workers.register_all(function, count);
            Ok(workers)
        }
    }

    /// Registers `count` workers, or as many as the server can have, and makes a queue for each.
    fn register_all(&mut self, function: &CStr, count: usize) {
        // SAFETY: the segment has room for that many queues. What the server allocates for them lasts
        // as long as `self`.
        unsafe {
            let queues = self.segment.find::<c_void>(Part::Queues);
            let segment = self.segment.as_ptr();
            let context = pg_sys::MemoryContextSwitchTo(self.memory);
            for number in 0..count {
                let queue = pg_sys::shm_mq_create(queues.byte_add(number * QUEUE_SIZE), QUEUE_SIZE);
                pg_sys::shm_mq_set_receiver(queue, pg_sys::MyProc);
                let handle = register(function, pg_sys::dsm_segment_handle(segment), number);
                let Some(handle) = handle else {
                    break;
                };
                self.handles.push(handle);
                self.queues
                    .push(pg_sys::shm_mq_attach(queue, segment, handle));
            }
            pg_sys::MemoryContextSwitchTo(context);
        }
    }

    /// Returns how many were started.
    pub(crate) fn count(&self) -> usize {
        self.handles.len()
    }

    pub(crate) fn shared(&self) -> &T {
        // SAFETY: in the segment, which lasts as long as `self`. It is `Sync`, as between threads.
        unsafe { self.shared.as_ref() }
    }

    /// Forwards to the client what the workers have sent since, including errors. Tells whether any of
    /// them is still at work.
    ///
    /// # Errors
    /// If a worker has ended without saying that it is done.
    pub(crate) fn pass_on(&mut self) -> Result<bool, Error> {
        let mut at = 0;
        while let Some(&queue) = self.queues.get(at) {
            let (mut len, mut data) = (0, ptr::null_mut());
            // SAFETY: the queue is attached to. A message lasts until the next one is received.
            let message = unsafe {
                match pg_sys::shm_mq_receive(queue, &raw mut len, &raw mut data, true) {
                    pg_sys::shm_mq_result::SHM_MQ_SUCCESS => {
                        slice::from_raw_parts(data.cast::<u8>(), len)
                    }
                    pg_sys::shm_mq_result::SHM_MQ_WOULD_BLOCK => {
                        at += 1;
                        continue;
                    }
                    _ => return Err(Error::LostWorker),
                }
            };
            match message.split_first() {
                Some((&kind, _)) if kind == DONE => {
                    self.queues.swap_remove(at);
                }
                Some((b'E' | b'N', text)) => self.report(text),
                // Such a worker would send nothing else to a client.
                _ => {}
            }
        }
        Ok(!self.queues.is_empty())
    }

    /// Raises the error, or sends another message to the client.
    fn report(&self, message: &[u8]) {
        // Room for the text, what is parsed from it, and the copies of the server and of pgrx.
        ensure_room(6 * message.len());
        // SAFETY: the message is one for a client, in the database encoding. What is made of it is in
        // memory that lasts until the next one; the server copies it.
        unsafe {
            pg_sys::MemoryContextReset(self.memory_of_message);
            let context = pg_sys::MemoryContextSwitchTo(self.memory_of_message);
            let mut text = pg_sys::StringInfoData::default();
            pg_sys::initStringInfo(&raw mut text);
            pg_sys::appendBinaryStringInfo(
                &raw mut text,
                message.as_ptr().cast(),
                message.len() as i32,
            );
            let mut error = pg_sys::ErrorData::default();
            pg_guard_ffi_boundary(|| pq_parse_errornotice(&raw mut text, &raw mut error));
            pg_sys::MemoryContextSwitchTo(context);
            // An error that ends the worker ends the statement, and not the session.
            error.elevel = error.elevel.min(PgLogLevel::ERROR as i32);
            pg_sys::ThrowErrorData(&raw mut error);
        }
    }
}

impl<T> Drop for Workers<T> {
    fn drop(&mut self) {
        // SAFETY: nothing refers to the segment any more. Detaching from it calls `end` with the
        // handles, which still exist. That also holds while an error is being raised: the server itself
        // detaches then.
        unsafe {
            pg_sys::dsm_detach(self.segment.as_ptr());
            pg_sys::MemoryContextDelete(self.memory);
        }
    }
}

/// Ends the workers, and waits until they have ended. Called before this process detaches from the
/// segment, even if that is because the process ends.
#[pg_guard]
unsafe extern "C-unwind" fn end(segment: *mut pg_sys::dsm_segment, handles: pg_sys::Datum) {
    // SAFETY: the segment is still mapped, and the handles live until then. This wait must not be
    // cancelled: that would be an error while another one is being handled.
    unsafe {
        if let Some(segment) = Segment::of(segment) {
            let header = &*segment.find::<Header>(Part::Header);
            header.has_ended.store(true, Ordering::Relaxed);
        }
        let handles = &*handles.cast_mut_ptr::<Handles>();
        for &handle in handles {
            pg_sys::TerminateBackgroundWorker(handle);
        }
        pg_sys::InterruptHoldoffCount += 1;
        for &handle in handles {
            pg_sys::WaitForBackgroundWorkerShutdown(handle);
        }
        pg_sys::InterruptHoldoffCount -= 1;
    }
}

/// Registers the worker with this number, or returns `None` if the server cannot have more.
fn register(
    function: &CStr,
    segment: pg_sys::dsm_handle,
    number: usize,
) -> Option<*mut pg_sys::BackgroundWorkerHandle> {
    let mut worker = pg_sys::BackgroundWorker {
        bgw_flags: (pg_sys::BGWORKER_SHMEM_ACCESS | pg_sys::BGWORKER_BACKEND_DATABASE_CONNECTION)
            as i32,
        bgw_start_time: pg_sys::BgWorkerStartTime::BgWorkerStart_RecoveryFinished,
        bgw_restart_time: pg_sys::BGW_NEVER_RESTART,
        bgw_main_arg: pg_sys::Datum::from(number << 32 | segment as usize),
        bgw_notify_pid: server::process_id(),
        ..Default::default()
    };
    let name = format!("pg_fernet worker of process {}", worker.bgw_notify_pid);
    write_name(&mut worker.bgw_name, name.as_bytes());
    write_name(&mut worker.bgw_type, b"pg_fernet worker");
    write_name(&mut worker.bgw_library_name, LIBRARY);
    write_name(&mut worker.bgw_function_name, function.to_bytes());
    let mut handle = ptr::null_mut();
    // SAFETY: the server copies the worker.
    let is_registered =
        unsafe { pg_sys::RegisterDynamicBackgroundWorker(&raw mut worker, &raw mut handle) };
    is_registered.then_some(handle)
}

/// As the definitions of the functions name it. From 18 on, an extension may be elsewhere, where
/// dynamic_library_path points.
const LIBRARY: &[u8] = if cfg!(any(feature = "pg18", feature = "pg19")) {
    b"pg_fernet"
} else {
    b"$libdir/pg_fernet"
};

/// Writes a name into a longer field of zeroes.
fn write_name(field: &mut [c_char], name: &[u8]) {
    for (to, &from) in field.iter_mut().zip(name) {
        *to = from as c_char;
    }
}

/// What a worker is given.
pub(crate) struct Given<'a, T> {
    pub(crate) shared: &'a T,
    pub(crate) task: &'a CStr,
    has_ended: &'a AtomicBool,
}

impl<T> Given<'_, T> {
    /// Tells whether the process that started the worker no longer needs it. If the postmaster is gone,
    /// that process may be gone, too, without having said so.
    pub(crate) fn is_over(&self) -> bool {
        // SAFETY: no arguments, no side effects.
        self.has_ended.load(Ordering::Relaxed) || unsafe { !pg_sys::PostmasterIsAliveInternal() }
    }
}

/// Defines the function that the server calls in a worker, and what it does with what it is [`Given`].
/// `T` must be the type that its starter shares.
macro_rules! background_worker {
    ($function:ident, $work:expr) => {
        #[pg_guard]
        #[unsafe(no_mangle)]
        extern "C-unwind" fn $function(argument: pg_sys::Datum) {
            // SAFETY: the server passes the worker's argument on.
            unsafe { $crate::pg::worker::run(argument, $work) }
        }
    };
}
pub(crate) use background_worker;

/// Does the work of a worker, in a transaction like the one in which a procedure is called. `T` must be
/// the type that its starter shares.
///
/// # Safety
/// Only the function of a worker may call this, with the argument that it was given.
pub(crate) unsafe fn run<T: Sync, E>(
    argument: pg_sys::Datum,
    work: impl FnOnce(Given<'_, T>) -> Result<(), E>,
) where
    E: Into<ErrorReport>,
{
    IS_WORKER.set(true);
    // SAFETY: nothing else is done in this process. The segment stays mapped until it ends.
    unsafe {
        on_sigterm(Some(die));
        pg_sys::BackgroundWorkerUnblockSignals();
        let segment = pg_sys::dsm_attach(argument.value() as u32);
        if segment.is_null() {
            return; // nobody waits for this worker
        }
        let Some(segment) = Segment::of(segment) else {
            return ErrorReport::from(Error::OtherLibrary).report(PgLogLevel::ERROR);
        };
        let header = &*segment.find::<Header>(Part::Header);
        let queues = segment.find::<c_void>(Part::Queues);
        let queue = queues.byte_add((argument.value() >> 32) * QUEUE_SIZE);
        pg_sys::shm_mq_set_sender(queue.cast(), pg_sys::MyProc);
        let queue = pg_sys::shm_mq_attach(queue.cast(), segment.as_ptr(), ptr::null_mut());
        // After this point, the starter gets the errors.
        pg_guard_ffi_boundary(|| pq_redirect_to_shm_mq(segment.as_ptr(), queue));
        pg_sys::BackgroundWorkerInitializeConnectionByOid(
            header.database,
            header.user,
            MAY_CONNECT,
        );
        pg_sys::SetClientEncoding(pg_sys::GetDatabaseEncoding());

        let task = take_over_session(segment);
        pg_sys::StartTransactionCommand();
        let given = Given {
            shared: &*segment.find::<T>(Part::Shared),
            task,
            has_ended: &header.has_ended,
        };
        if let Err(error) = work(given) {
            error.into().report(PgLogLevel::ERROR);
        }
        pg_sys::CommitTransactionCommand();
        pg_sys::shm_mq_send(queue, 1, (&raw const DONE).cast(), false, true);
    }
}

/// Shows the statement of the session as that of this process, and takes over the session's libraries,
/// settings and roles. Returns the task.
///
/// # Safety
/// The process must be connected to the database. The segment must stay mapped until it ends.
unsafe fn take_over_session(segment: Segment) -> &'static CStr {
    // SAFETY: the starter has written these parts; the caller says that they stay.
    unsafe {
        let mut texts = segment.find::<c_char>(Part::Texts).cast_const();
        let mut next_text = || {
            let text = CStr::from_ptr(texts);
            texts = texts.add(text.count_bytes() + 1);
            text
        };
        let (statement, task) = (next_text(), next_text());
        pg_sys::debug_query_string = statement.as_ptr();
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, statement.as_ptr());
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        // Libraries come before the settings, which may be theirs.
        pg_sys::RestoreLibraryState(segment.find(Part::Libraries));
        guc::restore(next_text);
        pg_sys::CommitTransactionCommand();
        task
    }
}

thread_local! {
    static IS_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Tells whether this process is such a worker.
pub(crate) fn is_worker() -> bool {
    IS_WORKER.get()
}

/// The login may have been refused to the role since. Servers before 17 do not have the second
/// flag.
const MAY_CONNECT: u32 = pg_sys::BGWORKER_BYPASS_ALLOWCONN | 2;

/// Lets the process end at the next point where it may.
unsafe fn on_sigterm(handler: pg_sys::pqsigfunc) {
    // SAFETY: the handler is the server's own.
    unsafe {
        #[cfg(not(any(feature = "pg18", feature = "pg19")))]
        pg_sys::pqsignal(libc::SIGTERM, handler);
        #[cfg(any(feature = "pg18", feature = "pg19"))]
        pg_sys::pqsignal_be(libc::SIGTERM, handler);
    }
}
