//! Small versions of other replacement policies, counted in entries, to compare hit ratios with.
//!
//! They are written to be read, not to be fast: a key is a number and nothing is stored for it.

use std::collections::{BTreeMap, HashMap, VecDeque};

/// A cache of keys.
pub trait Policy {
    /// Asks for a key, which is admitted if it is not there. Returns whether it was.
    fn access(&mut self, key: u64) -> bool;
}

/// Least recently used.
pub struct Lru {
    capacity: usize,
    clock: u64,
    used_at: HashMap<u64, u64>,
    by_use: BTreeMap<u64, u64>,
}

impl Lru {
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            clock: 0,
            used_at: HashMap::new(),
            by_use: BTreeMap::new(),
        }
    }

    fn contains(&self, key: u64) -> bool {
        self.used_at.contains_key(&key)
    }

    fn evict(&mut self) {
        if let Some((_, oldest)) = self.by_use.pop_first() {
            self.used_at.remove(&oldest);
        }
    }
}

impl Policy for Lru {
    fn access(&mut self, key: u64) -> bool {
        self.clock += 1;
        let before = self.used_at.insert(key, self.clock);
        if let Some(before) = before {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.clock, key);
        if self.used_at.len() > self.capacity {
            self.evict();
        }
        before.is_some()
    }
}

/// SIEVE (Zhang et al., NSDI 2024): one queue, a visited bit, a hand that stays where it stopped.
pub struct Sieve {
    capacity: usize,
    clock: u64,
    /// By time of admission: the key and whether it was visited.
    queue: BTreeMap<u64, (u64, bool)>,
    admitted_at: HashMap<u64, u64>,
    hand: u64,
}

impl Sieve {
    pub fn new(capacity: usize) -> Self {
        Self {
            capacity,
            clock: 0,
            queue: BTreeMap::new(),
            admitted_at: HashMap::new(),
            hand: 0,
        }
    }

    fn evict(&mut self) {
        // From the hand towards the newest, then again from the oldest.
        loop {
            let next = self.queue.range_mut(self.hand..).next();
            let Some((&at, (key, is_visited))) = next else {
                self.hand = 0;
                continue;
            };
            self.hand = at + 1;
            if !std::mem::take(is_visited) {
                self.admitted_at.remove(key);
                self.queue.remove(&at);
                return;
            }
        }
    }
}

impl Policy for Sieve {
    fn access(&mut self, key: u64) -> bool {
        if let Some(entry) = self
            .admitted_at
            .get(&key)
            .and_then(|at| self.queue.get_mut(at))
        {
            entry.1 = true;
            return true;
        }
        if self.queue.len() >= self.capacity {
            self.evict();
        }
        self.clock += 1;
        self.queue.insert(self.clock, (key, false));
        self.admitted_at.insert(key, self.clock);
        false
    }
}

/// A queue in which a key is found by name; the oldest leaves first.
#[derive(Default)]
struct Fifo {
    queue: VecDeque<(u64, u64)>,
    serials: HashMap<u64, u64>,
    serial: u64,
}

impl Fifo {
    fn len(&self) -> usize {
        self.serials.len()
    }

    fn contains(&self, key: u64) -> bool {
        self.serials.contains_key(&key)
    }

    fn push(&mut self, key: u64) {
        self.serial += 1;
        self.serials.insert(key, self.serial);
        self.queue.push_back((key, self.serial));
    }

    fn remove(&mut self, key: u64) -> bool {
        self.serials.remove(&key).is_some()
    }

    fn pop(&mut self) -> Option<u64> {
        while let Some((key, serial)) = self.queue.pop_front() {
            if self.serials.get(&key) == Some(&serial) {
                self.serials.remove(&key);
                return Some(key);
            }
        }
        None
    }
}

/// 2Q (Johnson and Shasha, VLDB 1994), the full version: a quarter in, ghosts of half.
pub struct TwoQueues {
    capacity: usize,
    newcomers: Fifo,
    ghosts: Fifo,
    main: Lru,
}

impl TwoQueues {
    pub fn new(capacity: usize) -> Self {
        let main = Lru::new(usize::MAX);
        Self {
            capacity,
            newcomers: Fifo::default(),
            ghosts: Fifo::default(),
            main,
        }
    }

    fn make_room(&mut self) {
        if self.newcomers.len() + self.main.used_at.len() < self.capacity {
            return;
        }
        if self.newcomers.len() > self.capacity / 4 || self.main.used_at.is_empty() {
            if let Some(key) = self.newcomers.pop() {
                self.ghosts.push(key);
            }
            if self.ghosts.len() > self.capacity / 2 {
                self.ghosts.pop();
            }
        } else {
            self.main.evict();
        }
    }
}

impl Policy for TwoQueues {
    fn access(&mut self, key: u64) -> bool {
        if self.main.contains(key) {
            return self.main.access(key);
        }
        if self.newcomers.contains(key) {
            return true;
        }
        let is_back = self.ghosts.remove(key);
        self.make_room();
        if is_back {
            self.main.access(key);
        } else {
            self.newcomers.push(key);
        }
        false
    }
}

/// S3-FIFO (Yang et al., SOSP 2023), as in the paper: a tenth small, two hits to stay, ghosts of 0.9.
pub struct S3Fifo {
    capacity: usize,
    small: Fifo,
    main: Fifo,
    ghosts: Fifo,
    hits: HashMap<u64, u8>,
}

impl S3Fifo {
    pub fn new(capacity: usize) -> Self {
        let empty = Fifo::default;
        Self {
            capacity,
            small: empty(),
            main: empty(),
            ghosts: empty(),
            hits: HashMap::new(),
        }
    }

    fn evict(&mut self) {
        if self.main.len() * 10 > self.capacity * 9 || !self.evict_small() {
            self.evict_main();
        }
    }

    fn evict_small(&mut self) -> bool {
        while let Some(key) = self.small.pop() {
            if self.hits.get(&key).is_some_and(|hits| *hits >= 2) {
                self.hits.insert(key, 0);
                self.main.push(key);
                continue;
            }
            self.hits.remove(&key);
            self.ghosts.push(key);
            if self.ghosts.len() * 10 > self.capacity * 9 {
                self.ghosts.pop();
            }
            return true;
        }
        false
    }

    fn evict_main(&mut self) {
        while let Some(key) = self.main.pop() {
            match self.hits.get_mut(&key) {
                Some(hits) if *hits > 0 => {
                    *hits -= 1;
                    self.main.push(key);
                }
                _ => {
                    self.hits.remove(&key);
                    return;
                }
            }
        }
    }
}

impl Policy for S3Fifo {
    fn access(&mut self, key: u64) -> bool {
        if let Some(hits) = self.hits.get_mut(&key) {
            *hits = (*hits + 1).min(3);
            return true;
        }
        while self.hits.len() >= self.capacity {
            self.evict();
        }
        if self.ghosts.remove(key) {
            self.main.push(key);
        } else {
            self.small.push(key);
        }
        self.hits.insert(key, 0);
        false
    }
}
