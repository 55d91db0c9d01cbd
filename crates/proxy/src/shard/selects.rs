//! In which database a transaction leaves its connection.
//!
//! `SELECT` inside `MULTI` takes effect when the transaction runs, and only the reply to `EXEC` tells whether it went
//! well. That reply may be as long as any, so it is followed as it passes and not kept.

use std::collections::VecDeque;

use keyheat_resp::reply::ReplyScanner;

use super::upstream::REPLIES;

/// Those of one transaction.
#[derive(Debug)]
pub(super) struct Selects {
    /// Which commands of the transaction select, and which database.
    queued: VecDeque<(usize, u32)>,
    scanner: ReplyScanner,
    has_begun: bool,
    /// Replies of the transaction that have passed.
    passed: usize,
    /// That of the last one that went well.
    selected: Option<u32>,
}

impl Selects {
    /// None so far.
    pub fn new() -> Self {
        Self {
            queued: VecDeque::new(),
            scanner: ReplyScanner::new(REPLIES),
            has_begun: false,
            passed: 0,
            selected: None,
        }
    }

    /// The command at `place` of the transaction selects `db`.
    pub fn note(&mut self, place: usize, db: u32) {
        self.queued.push_back((place, db));
    }

    /// Follows the reply to `EXEC`, in the pieces in which a scanner of such replies takes it.
    pub fn read(&mut self, piece: &[u8]) {
        let mut rest = piece;
        if !self.has_begun {
            if piece.is_empty() {
                return;
            }
            self.has_begun = true;
            let end = piece.iter().position(|b| *b == b'\n');
            match end {
                Some(end) if piece[0] == b'*' => rest = &piece[end + 1..],
                _ => return self.queued.clear(), // it did not run
            }
        }
        while let Some(&(place, db)) = self.queued.front() {
            let is_whole = self.scanner.is_at_start();
            let Ok(scan) = self.scanner.scan(rest) else {
                return self.queued.clear();
            };
            let (element, after) = rest.split_at(scan.consumed);
            rest = after;
            if !scan.complete {
                return;
            }
            if self.passed == place {
                self.queued.pop_front();
                if is_whole && element == b"+OK\r\n" {
                    self.selected = Some(db);
                }
            }
            self.passed += 1;
        }
    }

    /// The database, where it is another than before.
    pub fn selected(&self) -> Option<u32> {
        self.selected
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is selected by `reply`, in pieces that end after every `n` bytes of bulks and whole lines of others.
    fn after(reply: &[u8], piece_bytes: usize) -> Option<u32> {
        let mut selects = Selects::new();
        for (place, db) in [(0, 1), (3, 2), (4, 99)] {
            selects.note(place, db);
        }
        let mut pieces = ReplyScanner::new(REPLIES);
        let (mut start, mut end) = (0, 0);
        while start < reply.len() {
            end = (end + piece_bytes).min(reply.len());
            let scan = pieces.scan(&reply[start..end]).unwrap();
            selects.read(&reply[start..start + scan.consumed]);
            start += scan.consumed;
        }
        selects.selected()
    }

    #[test]
    fn the_last_select_that_went_well_counts_however_the_reply_comes() {
        let mut long = b"*5\r\n+OK\r\n$300\r\n".to_vec();
        long.extend(b"+OK\r\n".repeat(60));
        long.extend(b"\r\n*2\r\n+OK\r\n*1\r\n+OK\r\n+OK\r\n-ERR DB index is out of range\r\n");
        let mut deep = b"*5\r\n+OK\r\n".to_vec();
        deep.extend(b"*1\r\n".repeat(8_000));
        deep.extend(b":1\r\n:1\r\n-ERR no\r\n-ERR no\r\n");
        for piece_bytes in [1, 7, 64, 1_000_000] {
            assert_eq!(after(&long, piece_bytes), Some(2));
            assert_eq!(after(&deep, piece_bytes), Some(1));
            for nothing in [&b"*-1\r\n"[..], b"_\r\n", b"-EXECABORT no\r\n", b"+OK\r\n"] {
                assert_eq!(after(nothing, piece_bytes), None, "{nothing:?}");
            }
        }
    }
}
