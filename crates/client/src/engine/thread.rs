//! The tracker's thread, begun when there is something for it to do.
//!
//! While no key comes near to being hot there is nothing to judge and nothing to track. A process with a
//! second thread pays for it in every system call it makes and at every lock (about 0.3 % of a Redis
//! command's instructions), so one that has no hot keys does without.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use keyheat_net::lock;

type Begin = Box<dyn FnOnce() + Send>;

enum State {
    Waiting(Begin),
    Running(JoinHandle<()>),
    Ended,
}

/// See the module's description.
pub(super) struct Thread {
    is_waiting: AtomicBool,
    state: Mutex<State>,
}

impl Thread {
    /// One that has nothing to do yet, and never will.
    pub fn none() -> Self {
        Self {
            is_waiting: AtomicBool::new(false),
            state: Mutex::new(State::Ended),
        }
    }

    /// Says what it will do.
    pub fn prepare(&self, begin: impl FnOnce() + Send + 'static) {
        *lock(&self.state) = State::Waiting(Box::new(begin));
        self.is_waiting.store(true, Relaxed);
    }

    /// Begins, if it has not.
    ///
    /// # Errors
    /// The system refuses a thread; what it was to do is lost.
    #[inline]
    pub fn begin(&self) -> std::io::Result<()> {
        if self.is_waiting.load(Relaxed) {
            self.spawn()
        } else {
            Ok(())
        }
    }

    #[cold]
    fn spawn(&self) -> std::io::Result<()> {
        let mut state = lock(&self.state);
        self.is_waiting.store(false, Relaxed);
        match std::mem::replace(&mut *state, State::Ended) {
            State::Waiting(begin) => {
                let builder = std::thread::Builder::new().name("keyheat-tracker".into());
                *state = State::Running(builder.spawn(begin)?);
            }
            other => *state = other,
        }
        Ok(())
    }

    /// Forgets what has not begun. Waits at most `timeout` for what has, or while `is_busy`.
    pub fn end(&self, timeout: Duration, is_busy: impl Fn() -> bool) {
        self.is_waiting.store(false, Relaxed);
        let ended = std::mem::replace(&mut *lock(&self.state), State::Ended);
        let State::Running(thread) = ended else {
            return;
        };
        let until = Instant::now() + timeout;
        while (!thread.is_finished() || is_busy()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match *lock(&self.state) {
            State::Waiting(_) => "waiting",
            State::Running(_) => "running",
            State::Ended => "ended",
        };
        f.debug_struct("Thread").field("state", &state).finish()
    }
}
