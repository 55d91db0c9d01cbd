//! The staleness promise against a model of a server with a tracking connection.
//!
//! Everything that can be late is late by chance: requests reach the server, and replies and pushes
//! come back, one at a time and in order per connection; reads on other connections in any order;
//! writes by strangers and through this process; the connection is cut with or without the client
//! knowing. At every local hit the checker asks the one question: was this value overwritten by a
//! write acknowledged before now − `max_staleness`? And of writes through this process: by any that
//! was acknowledged at all? Two planted bugs show that the checker would find a violation.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const MAX_STALENESS: Nanos = 1000;
const KEYS: usize = 4;
const SOURCE: SourceId = SourceId(0);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Bug {
    None,
    /// Values are stored and served whatever came in between.
    NoFence,
    /// A heartbeat counts from its reply instead of its sending.
    ProofFromReply,
    /// Writes through this process are not bumped when they are answered.
    NoBump,
}

enum Request {
    Register {
        token: Token,
        key: usize,
        sent_at: Nanos,
    },
    Get {
        token: Token,
        key: usize,
        sent_at: Nanos,
    },
    Heartbeat {
        sent_at: Nanos,
    },
}

enum Message {
    Push(usize),
    PushAll,
    Registered {
        token: Token,
        key: usize,
        sent_at: Nanos,
    },
    Got {
        token: Token,
        key: usize,
        sent_at: Nanos,
        version: u64,
    },
    Beat {
        sent_at: Nanos,
    },
}

/// A read on another connection: where it stands.
struct Elsewhere {
    token: Token,
    key: usize,
    version: Option<u64>,
}

struct OwnWrite {
    key: usize,
    version: Option<u64>,
}

struct Acknowledged {
    key: usize,
    version: u64,
    at: Nanos,
    is_own: bool,
}

struct World {
    bug: Bug,
    now: Nanos,
    cache: LocalCache,
    epochs: Arc<WriteEpochs>,
    versions: [u64; KEYS],
    /// Keys for which the server would push.
    tracked: HashSet<usize>,
    is_half_open: bool,
    to_server: VecDeque<Request>,
    to_client: VecDeque<Message>,
    elsewhere: Vec<Elsewhere>,
    own_writes: Vec<OwnWrite>,
    acknowledged: Vec<Acknowledged>,
    hits: usize,
}

fn key(key: usize) -> Vec<u8> {
    format!("item:{key}").into_bytes()
}

/// Two keys share a hash.
fn key_hash(key: usize) -> u64 {
    key.min(2) as u64
}

impl World {
    fn new(bug: Bug) -> Self {
        let epochs = Arc::new(WriteEpochs::default());
        let settings = CacheSettings {
            max_bytes: 1 << 20,
            max_staleness: Duration::from_nanos(MAX_STALENESS),
            ..CacheSettings::default()
        };
        let mut cache = LocalCache::new(settings, Arc::clone(&epochs));
        cache.is_fenced = bug != Bug::NoFence;
        cache.source_up(SOURCE);
        Self {
            bug,
            now: 10_000,
            cache,
            epochs,
            versions: [0; KEYS],
            tracked: HashSet::new(),
            is_half_open: false,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            elsewhere: Vec::new(),
            own_writes: Vec::new(),
            acknowledged: Vec::new(),
            hits: 0,
        }
    }

    fn write(&mut self, key: usize) -> u64 {
        self.versions[key] += 1;
        if self.tracked.remove(&key) {
            self.to_client.push_back(Message::Push(key));
        }
        self.versions[key]
    }

    fn acknowledge(&mut self, key: usize, version: u64, is_own: bool) {
        self.acknowledged.push(Acknowledged {
            key,
            version,
            at: self.now,
            is_own,
        });
    }

    fn flush(&mut self) {
        for key in 0..KEYS {
            self.versions[key] += 1;
            self.acknowledge(key, self.versions[key], false);
        }
        self.tracked.clear();
        if !self.is_half_open {
            self.to_client.push_back(Message::PushAll);
        }
    }

    fn begin(&mut self, of: usize, is_on_tracking: bool) {
        let Some(token) = self.cache.begin(SOURCE, &key(of), key_hash(of)) else {
            return;
        };
        let sent_at = self.now;
        if is_on_tracking {
            self.to_server.push_back(Request::Get {
                token,
                key: of,
                sent_at,
            });
        } else if self.cache.is_registered(&token) {
            self.elsewhere.push(Elsewhere {
                token,
                key: of,
                version: None,
            });
        } else {
            self.to_server.push_back(Request::Register {
                token,
                key: of,
                sent_at,
            });
        }
    }

    /// The server runs the next request of the tracking connection.
    fn serve(&mut self) {
        if self.is_half_open {
            return;
        }
        let reply = match self.to_server.pop_front() {
            None => return,
            Some(Request::Heartbeat { sent_at }) => Message::Beat { sent_at },
            Some(Request::Register {
                token,
                key,
                sent_at,
            }) => {
                self.tracked.insert(key);
                Message::Registered {
                    token,
                    key,
                    sent_at,
                }
            }
            Some(Request::Get {
                token,
                key,
                sent_at,
            }) => {
                self.tracked.insert(key);
                Message::Got {
                    token,
                    key,
                    sent_at,
                    version: self.versions[key],
                }
            }
        };
        self.to_client.push_back(reply);
    }

    /// The client takes the next message off the tracking connection.
    fn receive(&mut self) {
        match self.to_client.pop_front() {
            None => {}
            Some(Message::Push(of)) => self.cache.invalidate(SOURCE, key_hash(of), &key(of)),
            Some(Message::PushAll) => self.cache.invalidate_all(SOURCE),
            Some(Message::Beat { sent_at }) => {
                let from_reply = self.bug == Bug::ProofFromReply;
                self.cache
                    .proved(SOURCE, if from_reply { self.now } else { sent_at });
            }
            Some(Message::Registered {
                token,
                key,
                sent_at,
            }) => {
                self.cache.registered(&token, sent_at);
                self.elsewhere.push(Elsewhere {
                    token,
                    key,
                    version: None,
                });
            }
            Some(Message::Got {
                token,
                key,
                sent_at,
                version,
            }) => {
                self.cache.registered(&token, sent_at);
                self.store(&token, key, version);
            }
        }
    }

    fn store(&mut self, token: &Token, of: usize, version: u64) {
        let (key, command) = (key(of), [b"GET ".to_vec(), key(of)].concat());
        let query = Query {
            key: &key,
            key_hash: key_hash(of),
            variant: 0,
            command: &command,
        };
        self.cache
            .store(token, &query, &version.to_le_bytes(), Ttl::None, self.now);
    }

    fn lookup(&mut self, of: usize) -> Result<(), String> {
        let (key, command) = (key(of), [b"GET ".to_vec(), key(of)].concat());
        let query = Query {
            key: &key,
            key_hash: key_hash(of),
            variant: 0,
            command: &command,
        };
        let Lookup::Hit(value, ()) = self.cache.lookup(SOURCE, &query, self.now) else {
            return Ok(());
        };
        let version = u64::from_le_bytes(value.try_into().unwrap());
        self.hits += 1;
        let newer = self
            .acknowledged
            .iter()
            .filter(|write| write.key == of && write.version > version);
        for write in newer {
            if write.is_own || write.at + MAX_STALENESS < self.now {
                return Err(format!(
                    "version {version} at {}, overwritten at {}",
                    self.now, write.at
                ));
            }
        }
        Ok(())
    }

    fn reconnect(&mut self) {
        self.cache.source_down(SOURCE);
        self.to_server.clear();
        self.to_client.clear();
        self.tracked.clear();
        self.is_half_open = false;
        self.cache.source_up(SOURCE);
    }

    fn cut_unnoticed(&mut self) {
        self.is_half_open = true;
        self.tracked.clear();
    }

    fn read_elsewhere(&mut self, pick: usize) {
        let Some(index) = pick.checked_rem(self.elsewhere.len()) else {
            return;
        };
        match self.elsewhere[index].version {
            None => self.elsewhere[index].version = Some(self.versions[self.elsewhere[index].key]),
            Some(version) => {
                let Elsewhere { token, key, .. } = self.elsewhere.swap_remove(index);
                self.store(&token, key, version);
            }
        }
    }

    fn send_own_write(&mut self, key: usize) {
        self.epochs.bump(key_hash(key));
        self.own_writes.push(OwnWrite { key, version: None });
    }

    fn run_own_write(&mut self, pick: usize) {
        let Some(index) = pick.checked_rem(self.own_writes.len()) else {
            return;
        };
        let key = self.own_writes[index].key;
        match self.own_writes[index].version {
            None => self.own_writes[index].version = Some(self.write(key)),
            Some(version) => {
                if self.bug != Bug::NoBump {
                    self.epochs.bump(key_hash(key));
                }
                self.acknowledge(key, version, true);
                self.own_writes.swap_remove(index);
            }
        }
    }

    fn step(&mut self, step: Step) -> Result<(), String> {
        let Step {
            what,
            key,
            pick,
            later,
        } = step;
        match what {
            0..=9 => self.now += later,
            10..=11 => self.now += later * 15,
            12..=15 => {
                let version = self.write(key);
                self.acknowledge(key, version, false);
            }
            16..=17 => self.send_own_write(key),
            18..=21 => self.run_own_write(pick),
            22..=25 => self.begin(key, true),
            26..=29 => self.begin(key, false),
            30..=39 => self.serve(),
            40..=49 => self.receive(),
            50..=54 => self
                .to_server
                .push_back(Request::Heartbeat { sent_at: self.now }),
            55..=62 => self.read_elsewhere(pick),
            63..=76 => return self.lookup(key),
            // What undoes much is made rarer than the rest.
            77.. if pick > 0 => return self.lookup(key),
            77 => self.reconnect(),
            78 => self.cut_unnoticed(),
            79 => self.flush(),
            80 => self.cache.clear(),
            _ => self.cache.retain(|hash| hash != key_hash(key)),
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
struct Step {
    what: u8,
    key: usize,
    pick: usize,
    later: u64,
}

/// Plays steps; returns the hits that were served, or what was stale.
fn play(bug: Bug, steps: impl IntoIterator<Item = Step>) -> Result<usize, String> {
    let mut world = World::new(bug);
    for step in steps {
        world.step(step)?;
    }
    Ok(world.hits)
}

/// Steps by a simple generator, for runs that are to be the same everywhere.
fn steps(seed: u64) -> impl Iterator<Item = Step> {
    let mut state = seed;
    let mut random = move |below: u64| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        spread(state) % below
    };
    (0..600).map(move |_| Step {
        what: random(82) as u8,
        key: random(KEYS as u64) as usize,
        pick: random(8) as usize,
        later: random(100),
    })
}

/// The first of many runs in which the checker finds a stale value.
fn first_violation(bug: Bug) -> Option<u64> {
    (0..3000).find(|seed| play(bug, steps(*seed)).is_err())
}

#[test]
fn no_stale_value_is_served_in_three_thousand_runs() {
    let mut hits = 0;
    for seed in 0..3000 {
        hits += play(Bug::None, steps(seed)).unwrap();
    }
    assert!(
        hits > 10_000,
        "only {hits} hits: the model hardly serves anything"
    );
}

#[test]
fn without_the_fence_the_checker_finds_a_stale_value() {
    assert!(first_violation(Bug::NoFence).is_some());
}

#[test]
fn with_a_proof_from_the_reply_the_checker_finds_a_stale_value() {
    assert!(first_violation(Bug::ProofFromReply).is_some());
}

#[test]
fn without_the_bump_at_the_answer_the_checker_finds_a_stale_value() {
    assert!(first_violation(Bug::NoBump).is_some());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn no_stale_value_is_served_in_any_interleaving(
        steps in prop::collection::vec((0..82_u8, 0..KEYS, 0..8_usize, 0..100_u64), 1..500),
    ) {
        let steps = steps.into_iter().map(|(what, key, pick, later)| Step { what, key, pick, later });
        let outcome = play(Bug::None, steps);
        prop_assert!(outcome.is_ok(), "{outcome:?}");
    }
}
