//! The maker: a thread that owns hot keys and makes their copies.
//!
//! Per key one process of all holds the lease. Its rounds, three per bound: take the lease and enter the
//! places in the register; read the time to live; `DUMP`; restore at each place unless a write came in
//! between. Everything blocks, with a limit on each step; nothing of it is on the way of a request.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyheat_core::hash::KeyHasher;
use keyheat_resp::reply::Value;
use keyheat_resp::slot;

use super::names::{self, Beside};
use super::scripts;
use crate::control::Shared;
use crate::random::Random;
use crate::settings::Settings;
use crate::topology::{Connection, Topology};

/// A node's copies may take this long to answer.
const ANSWER_MAX: Duration = Duration::from_millis(250);
/// Removing all copies at the end may take this long.
const END_MAX: Duration = Duration::from_secs(1);

/// What the maker is told.
pub(crate) enum ToMaker {
    /// These keys are to be copied, and no others.
    Keys(Vec<Arc<[u8]>>),
}

struct Copied {
    beside: Beside,
    is_owner: bool,
    next_round: Instant,
    digest: [u64; 2],
}

/// What can be said of a round.
type Outcome = Result<(), String>;

pub(crate) struct Maker {
    shared: Arc<Shared>,
    settings: Arc<Settings>,
    topology: Arc<Topology>,
    owner: String,
    keys: HashMap<Arc<[u8]>, Copied>,
    connections: HashMap<String, Connection>,
    random: Random,
    last_failure: String,
}

impl Maker {
    /// Makes copies until nobody is left to name keys, and then removes them.
    ///
    /// Args: `number` of this process, which nobody else has.
    pub fn run(shared: Arc<Shared>, number: u64, inbox: &Receiver<ToMaker>) {
        let mut maker = Self {
            settings: shared.settings.load_full(),
            topology: Arc::default(),
            shared,
            owner: format!("{number:016x}"),
            keys: HashMap::new(),
            connections: HashMap::new(),
            random: Random::new(number),
            last_failure: String::new(),
        };
        loop {
            maker.settings = maker.shared.settings.load_full();
            if let Some(topology) = maker.shared.topology.load_full() {
                maker.topology = topology;
            }
            let wait = if maker.keys.is_empty() {
                Duration::from_millis(500)
            } else {
                maker.round_length() / 4
            };
            match inbox.recv_timeout(wait) {
                Ok(ToMaker::Keys(keys)) => maker.take(keys),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            maker.rounds();
        }
        let until = Instant::now() + END_MAX;
        let keys: Vec<_> = maker.keys.keys().cloned().collect();
        for key in keys.iter().take_while(|_| Instant::now() < until) {
            maker.cool(key);
        }
    }

    fn round_length(&self) -> Duration {
        Duration::from_millis(self.settings.copies_max_staleness_ms / 3)
    }

    /// How long registers and fences live: well past any copy made under an older version.
    fn keep_ms(&self) -> String {
        keep_ms(&self.settings).to_string()
    }

    fn take(&mut self, wanted: Vec<Arc<[u8]>>) {
        let gone: Vec<_> = self
            .keys
            .keys()
            .filter(|k| !wanted.contains(k))
            .cloned()
            .collect();
        for key in gone {
            self.cool(&key);
        }
        for key in wanted {
            self.keys.entry(key).or_insert_with_key(|key| Copied {
                beside: Beside::of(key),
                is_owner: false,
                next_round: Instant::now(),
                digest: [0; 2],
            });
        }
    }

    fn rounds(&mut self) {
        let now = Instant::now();
        let due: Vec<_> = self
            .keys
            .iter()
            .filter(|(_, copied)| copied.next_round <= now)
            .map(|(key, _)| Arc::clone(key))
            .collect();
        for key in due {
            if let Err(why) = self.round(&key) {
                self.shared.copies.failures.fetch_add(1, Relaxed);
                if why != self.last_failure {
                    tracing::warn!("copies of a hot key could not be made: {why}");
                    self.last_failure = why;
                }
            }
        }
        let owned = self.keys.values().filter(|copied| copied.is_owner).count();
        self.shared.copies.owned.store(owned as u64, Relaxed);
    }

    fn round(&mut self, key: &[u8]) -> Outcome {
        let own = self
            .topology
            .owner(slot::slot(key))
            .ok_or("no node owns its slot")?;
        let all = names::places(&self.topology);
        let places = names::places_of(&all, own, slot::slot(key), self.settings.copies_max);
        let lease_ms = 2 * self.settings.copies_max_staleness_ms;
        // As an owner every round; as a candidate now and then, so that the hot node is not asked by all.
        let later = Duration::from_millis(lease_ms).mul_f64(0.5 + self.random.draw());
        let Some(copied) = self.keys.get_mut(key) else {
            return Ok(());
        };
        copied.next_round = Instant::now() + later;
        if places.is_empty() {
            return Err("there is no other primary".into());
        }
        let beside = copied.beside.clone();
        let (lease_ms, keep_ms) = (lease_ms.to_string(), self.keep_ms());
        let owner = self.owner.clone();
        let numbers: Vec<String> = places.iter().map(u32::to_string).collect();
        let mut ask: Vec<&[u8]> = vec![
            b"EVAL",
            scripts::LEASE.as_bytes(),
            b"2",
            &beside.lease,
            &beside.register,
            owner.as_bytes(),
            lease_ms.as_bytes(),
            keep_ms.as_bytes(),
        ];
        ask.extend(numbers.iter().map(String::as_bytes));
        let answer = self.call(own, &ask)?;
        let (version, at_ms) = match &answer {
            Value::Array(parts) => match &parts[..] {
                [Value::Int(1), Value::Bulk(version), Value::Bulk(at_ms)] => {
                    (text(version), text(at_ms).parse::<u64>().unwrap_or(0))
                }
                _ => {
                    self.set_owner(key, false);
                    return Ok(());
                }
            },
            other => return Err(said(other)),
        };
        self.set_owner(key, true);
        self.make(key, own, &places, &version, at_ms)
    }

    fn set_owner(&mut self, key: &[u8], is_owner: bool) {
        let soon = Instant::now() + self.round_length().mul_f64(0.9);
        if let Some(copied) = self.keys.get_mut(key) {
            copied.is_owner = is_owner;
            if is_owner {
                copied.next_round = soon;
            }
        }
    }

    fn make(&mut self, key: &[u8], own: u32, places: &[u32], version: &str, at_ms: u64) -> Outcome {
        let (settings, most) = (
            Arc::clone(&self.settings),
            self.settings.copies_value_max_bytes,
        );
        let ttl_ms = match self.call(own, &[b"PTTL", key])? {
            Value::Int(ms) => ms,
            other => return Err(said(&other)),
        };
        if let Value::Int(bytes) = self.call(own, &[b"MEMORY", b"USAGE", key])? {
            if bytes > 2 * most as i64 {
                return self.give_up(key, "the value is larger than copies_value_max_bytes");
            }
        }
        let payload = match self.call(own, &[b"DUMP", key])? {
            Value::Bulk(payload) if payload.len() <= most => payload,
            Value::Bulk(_) => {
                return self.give_up(key, "the value is larger than copies_value_max_bytes")
            }
            Value::Null => return self.give_up(key, ""),
            other => return Err(said(&other)),
        };
        let skew_ms = settings.copies_clock_skew_ms;
        let mut lives_ms = settings.copies_max_staleness_ms.saturating_sub(skew_ms);
        if ttl_ms >= 0 {
            lives_ms = lives_ms.min((ttl_ms as u64).saturating_sub(skew_ms));
        }
        if lives_ms == 0 {
            return self.give_up(key, "");
        }
        let deadline = (at_ms + lives_ms).to_string();
        self.place_all(key, places, version, &deadline, &payload)
    }

    /// There is nothing to copy now: what there was is removed.
    fn give_up(&mut self, key: &[u8], why: &str) -> Outcome {
        if let Some(copied) = self.keys.get_mut(key) {
            if copied.digest == [0; 2] {
                return Ok(());
            }
            copied.digest = [0; 2];
        }
        self.void(key)?;
        if why.is_empty() {
            return Ok(());
        }
        Err(why.into())
    }

    fn place_all(
        &mut self,
        key: &[u8],
        places: &[u32],
        version: &str,
        deadline: &str,
        payload: &[u8],
    ) -> Outcome {
        let digest = [1, 2].map(|seed| KeyHasher::new(seed).hash(payload));
        let before = self.keys.get(key).map(|copied| copied.digest);
        let words = format!("{:016x}{:016x}", digest[0], digest[1]);
        let keep_ms = self.keep_ms();
        let mut failure = None;
        for &place in places {
            let (copy, fence) = (names::copy(key, place), names::fence(key, place));
            let Some(node) = self.topology.owner(slot::slot(&copy)) else {
                continue;
            };
            let mut ask: Vec<&[u8]> = vec![
                b"EVAL",
                scripts::PLACE.as_bytes(),
                b"2",
                &copy,
                &fence,
                version.as_bytes(),
                words.as_bytes(),
                deadline.as_bytes(),
                keep_ms.as_bytes(),
            ];
            if before != Some(digest) {
                ask.push(payload);
            }
            let mut answer = self.call(node, &ask);
            if answer == Ok(Value::Int(-1)) {
                ask.push(payload);
                answer = self.call(node, &ask);
            }
            match answer {
                Ok(Value::Int(1)) => {
                    self.shared.copies.placed.fetch_add(1, Relaxed);
                }
                Ok(Value::Int(_)) => {}
                Ok(other) => failure = Some(said(&other)),
                Err(why) => failure = Some(why),
            }
        }
        if let Some(copied) = self.keys.get_mut(key) {
            copied.digest = digest;
        }
        failure.map_or(Ok(()), Err)
    }

    /// Forgets a key; its owner removes the copies and gives up the lease.
    fn cool(&mut self, key: &[u8]) {
        let is_owner = self.keys.get(key).is_some_and(|copied| copied.is_owner);
        if is_owner {
            // What fails here ends by itself: everything expires.
            let _ = self.void(key);
            let own = self.topology.owner(slot::slot(key));
            let lease = self.keys.get(key).map(|copied| copied.beside.lease.clone());
            if let (Some(own), Some(lease)) = (own, lease) {
                let owner = self.owner.clone();
                let ask = [
                    b"EVAL",
                    scripts::DELETE_IF.as_bytes(),
                    b"1",
                    &lease,
                    owner.as_bytes(),
                ];
                let _ = self.call(own, &ask);
            }
        }
        self.keys.remove(key);
    }

    /// Moves the key's version and deletes its copies.
    fn void(&mut self, key: &[u8]) -> Outcome {
        let own = self
            .topology
            .owner(slot::slot(key))
            .ok_or("no node owns its slot")?;
        let Some(register) = self.keys.get(key).map(|c| c.beside.register.clone()) else {
            return Ok(());
        };
        let keep_ms = self.keep_ms();
        let keep = keep_ms.as_bytes();
        let ask = [
            b"EVAL",
            scripts::MOVE.as_bytes(),
            b"1",
            &register,
            keep,
            keep,
        ];
        let Some((version, places)) = moved(&self.call(own, &ask)?) else {
            return Err("the register could not be moved".into());
        };
        for place in places {
            let (copy, fence) = (names::copy(key, place), names::fence(key, place));
            if let Some(node) = self.topology.owner(slot::slot(&copy)) {
                let fences = scripts::FENCE.as_bytes();
                self.call(
                    node,
                    &[b"EVAL", fences, b"2", &copy, &fence, &version, keep],
                )?;
            }
        }
        Ok(())
    }

    /// Asks a node something, on a connection that is kept.
    fn call(&mut self, node: u32, ask: &[&[u8]]) -> Result<Value, String> {
        let name = match self.topology.nodes.get(node as usize) {
            Some(node) => node.name.clone(),
            None => return Err("the node is not known".into()),
        };
        if !self.connections.contains_key(&name) {
            let tls = self.shared.credentials.load().client.clone();
            let opened = Connection::to(&name, &self.settings, tls.as_deref(), ANSWER_MAX)?;
            self.connections.insert(name.clone(), opened);
        }
        let Some(connection) = self.connections.get_mut(&name) else {
            return Err("no connection".into());
        };
        let answer = connection.call(ask).map_err(|why| format!("{name}: {why}"));
        if answer.is_err() {
            self.connections.remove(&name);
        }
        answer
    }
}

/// How long registers and fences live, in milliseconds.
pub(crate) fn keep_ms(settings: &Settings) -> u64 {
    4 * settings.copies_max_staleness_ms + 2 * settings.copies_clock_skew_ms
}

/// Reads what `MOVE` answers: the new version, and the places that may hold a copy.
pub(crate) fn moved(answer: &Value) -> Option<(Vec<u8>, Vec<u32>)> {
    let Value::Array(parts) = answer else {
        return None;
    };
    let Some((Value::Bulk(version), places)) = parts.split_first() else {
        return None;
    };
    let place = |value: &Value| match value {
        Value::Bulk(place) => text(place).parse().ok(),
        _ => None,
    };
    Some((version.clone(), places.iter().filter_map(place).collect()))
}

fn said(value: &Value) -> String {
    match value {
        Value::Error(e) => text(e),
        _ => "an answer that makes no sense".into(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
