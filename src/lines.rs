//! Lines for a stream whose reader may be slow, stuck or gone, such as a log shipper.
//!
//! Owns a bounded buffer and the thread that empties it. Whoever writes a line never waits and never fails: a line that
//! finds no room, or that the stream refuses, is lost and counted. It must not know what the lines say.

use std::{
    io::{self, ErrorKind, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Most bytes that wait for the stream; the thread holds as many again while it writes.
const CAPACITY_BYTES: usize = 1 << 20;
/// How soon a stream that takes nothing at the moment is tried again.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// The near end of a stream. Its clones share one buffer.
#[derive(Debug, Clone)]
pub struct Lines(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There are bytes to write, or there are none left.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    /// The thread has taken bytes and is not done with them.
    writing: bool,
    lost_lines: usize,
}

impl Lines {
    /// Starts the thread that writes to `stream`. Once the stream takes lines again, `tell_lost` is called with the number
    /// of those that were lost in the meantime. It may write lines.
    pub fn start(mut stream: impl Write + Send + 'static, tell_lost: impl Fn(usize) + Send + 'static) -> Self {
        let lines = Self(Arc::default());
        let far_end = lines.clone();
        // Without a thread the buffer fills up and every further line is lost, which harms nothing else.
        let _ =
            thread::Builder::new().name("lines".to_owned()).spawn(move || far_end.empty_into(&mut stream, &tell_lost));
        lines
    }

    /// Hands over one line, its end included.
    pub fn push(&self, line: &[u8]) {
        if !self.push_into(CAPACITY_BYTES, line) {
            self.lock().lost_lines += 1;
        }
    }

    /// Hands `bytes` over if no more than `most_waiting` then wait; whether it did. What is not taken is not counted.
    pub fn push_into(&self, most_waiting: usize, bytes: &[u8]) -> bool {
        let mut state = self.lock();
        let has_room = state.waiting.len() + bytes.len() <= most_waiting;
        if has_room {
            state.waiting.extend_from_slice(bytes);
            self.0.changed.notify_all();
        }
        has_room
    }

    /// Waits until everything is written, but for no longer than `within`; whether it is.
    pub fn flush(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        let mut state = self.lock();
        while state.writing || !state.waiting.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn empty_into(&self, stream: &mut impl Write, tell_lost: &impl Fn(usize)) {
        let mut batch = Vec::new();
        loop {
            self.take(&mut batch);
            let written = write_batch(stream, &batch);
            let lost = lines_in(&batch[written..]);
            batch.clear();
            if lost > 0 {
                self.lock().lost_lines += lost;
            } else {
                let lost = std::mem::take(&mut self.lock().lost_lines);
                if lost > 0 {
                    tell_lost(lost);
                }
            }
            self.lock().writing = false;
            self.0.changed.notify_all();
        }
    }

    /// Waits for bytes and takes all that there are.
    fn take(&self, batch: &mut Vec<u8>) {
        let mut state = self.lock();
        while state.waiting.is_empty() {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut state.waiting, batch);
        state.writing = true;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change of the state is a single step, so a thread that panicked left it whole.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Lines {
    /// Takes one line, which is what the log writes at a time.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// How many bytes the stream took before it failed.
fn write_batch(stream: &mut impl Write, batch: &[u8]) -> usize {
    let mut written = 0;
    while written < batch.len() {
        match stream.write(&batch[written..]) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Another program that shares the stream may have made it non-blocking.
            Err(error) if error.kind() == ErrorKind::WouldBlock => thread::sleep(TRY_AGAIN_AFTER),
            Err(_) => break,
        }
    }
    written
}

fn lines_in(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A stream that hands over what is written to it, and for each write takes an answer.
    struct Stream {
        written: mpsc::Sender<Vec<u8>>,
        answers: mpsc::Receiver<io::Result<()>>,
    }

    impl Write for Stream {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.written.send(bytes.to_vec()).unwrap();
            self.answers.recv().unwrap().map(|()| bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Far {
        written: mpsc::Receiver<Vec<u8>>,
        answers: mpsc::Sender<io::Result<()>>,
        lost: mpsc::Receiver<usize>,
    }

    fn lines() -> (Lines, Far) {
        let ((written_tx, written), (answers, answers_rx)) = (mpsc::channel(), mpsc::channel());
        let (lost_tx, lost) = mpsc::channel();
        let tell_lost = move |count| lost_tx.send(count).unwrap();
        (Lines::start(Stream { written: written_tx, answers: answers_rx }, tell_lost), Far { written, answers, lost })
    }

    #[test]
    fn a_stuck_stream_holds_nobody_up_and_what_has_no_room_is_counted() {
        let (lines, far) = lines();
        lines.push(b"first\n");
        assert_eq!(far.written.recv().unwrap(), b"first\n");
        // The stream is in the middle of a write now. A line fills half of what may wait.
        let half = [&vec![b'x'; CAPACITY_BYTES / 2 - 1][..], b"\n"].concat();
        for _ in 0..5 {
            lines.push(&half);
        }
        assert!(!lines.flush(Duration::ZERO));
        assert!(!lines.push_into(100, b"a frame of a bar"));
        far.answers.send(Ok(())).unwrap();
        assert_eq!(far.lost.recv().unwrap(), 3);
        assert_eq!(far.written.recv().unwrap().len(), CAPACITY_BYTES);
        far.answers.send(Ok(())).unwrap();
        assert!(lines.flush(LONG));
        assert!(lines.push_into(100, b"a frame of a bar"));
        assert_eq!(far.written.recv().unwrap(), b"a frame of a bar");
    }

    #[test]
    fn a_broken_stream_loses_lines_and_says_so_once_it_works_again() {
        let (lines, far) = lines();
        lines.push(b"one\ntwo\n");
        far.written.recv().unwrap();
        far.answers.send(Err(ErrorKind::StorageFull.into())).unwrap();
        assert!(lines.flush(LONG));
        lines.push(b"three\n");
        // A stream that is busy is tried again.
        for answer in [Err(ErrorKind::WouldBlock.into()), Err(ErrorKind::Interrupted.into()), Ok(())] {
            assert_eq!(far.written.recv().unwrap(), b"three\n");
            far.answers.send(answer).unwrap();
        }
        assert_eq!(far.lost.recv().unwrap(), 2);
        assert!(lines.flush(LONG));
    }
}
