//! The tracker at its worst moments: servers that refuse, keys that moved, attempts that never end.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicUsize;
use std::sync::Mutex;
use std::time::Instant;

use keyheat_resp::slot::slot;

use super::beat::pace;
use super::*;
use crate::connect::{Dialed, Peer, Wire};
use crate::engine::{Engine, Writes};
use crate::settings::Settings;
use crate::topology::Node;

/// One end of a pair of sockets; the test is the server at the other.
struct Pipe(UnixStream);

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(into)
    }
}

impl Write for Pipe {
    fn write(&mut self, from: &[u8]) -> std::io::Result<usize> {
        self.0.write(from)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Wire for Pipe {
    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn set_waiting(&self, _timeout: Option<Duration>) -> std::io::Result<()> {
        Ok(())
    }
}

/// A connector that dies, or hangs until its lock is free.
#[derive(Default)]
struct Bad {
    is_panicking: bool,
    dialled: AtomicUsize,
    gate: Mutex<()>,
}

impl Connector for Bad {
    fn dial(&self, _node: &Node, _timeout: Duration) -> Result<Dialed, Refusal> {
        self.dialled.fetch_add(1, Relaxed);
        assert!(!self.is_panicking, "planted");
        drop(lock(&self.gate));
        Err(Refusal::Unreachable("nobody is there".into()))
    }
}

fn node(port: u16) -> Node {
    Node {
        host: "h".into(),
        port,
    }
}

/// Two nodes, a half of the slots each.
fn two_nodes() -> Topology {
    let mut topology = Topology::cluster();
    topology.set_owner(0, 8_191, &node(1));
    topology.set_owner(8_192, 16_383, &node(2));
    topology
}

/// A tracker that the test drives, and the engine whose state it shares.
fn tracker(topology: Topology, bad: &Arc<Bad>) -> (Engine<u32>, Tracker<u32>) {
    let connector: Arc<dyn Connector> = Arc::clone(bad) as _;
    let (settings, writes) = (Settings::default(), Writes::new(1));
    let engine = Engine::start(settings, topology, Arc::clone(&connector), &writes).unwrap();
    let poll = Poll::new().unwrap();
    let tracker = Tracker::new(Arc::clone(engine.shared()), poll, connector).unwrap();
    (engine, tracker)
}

/// Connects a node of the tracker to the test.
fn connect(tracker: &mut Tracker<u32>, number: u32, now: Nanos) -> UnixStream {
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let peer = Peer {
        process: "p".into(),
        has_field_expiry: false,
        server: String::new(),
    };
    let ready = Ready {
        wire: Box::new(Pipe(near)),
        peer,
        rest: Vec::new(),
    };
    let attempt = Attempt {
        number: 1_000,
        begun_at: now,
    };
    let state = tracker.nodes.entry(number).or_default();
    state.connecting = Some(attempt);
    tracker.on_opened(number, attempt.number, Ok(ready), now);
    far
}

/// Has a key registered, and the server answer so.
fn ask_for(tracker: &mut Tracker<u32>, number: u32, key: &[u8], now: Nanos) -> Token {
    let shared = Arc::clone(&tracker.shared);
    let token = {
        let mut cached = lock(&shared.cached);
        let hash = shared.hash(key);
        let token = cached.cache.begin(SourceId(number), key, hash).unwrap();
        assert!(cached.cache.ask(&token));
        token
    };
    let message = Message::Register {
        token: token.clone(),
        key: key.into(),
    };
    tracker.on_message(message, now);
    token
}

fn is_registered(tracker: &Tracker<u32>, token: &Token) -> bool {
    lock(&tracker.shared.cached).cache.is_registered(token)
}

#[test]
fn a_connection_lost_at_its_first_question_has_proved_nothing() {
    let (_engine, mut tracker) = tracker(Topology::standalone(), &Arc::default());
    let mut waits = Vec::new();
    for _ in 0..4 {
        let now = clock::now();
        let mut far = connect(&mut tracker, 0, now);
        ask_for(&mut tracker, 0, b"k", now);
        far.write_all(b"-BUSY a script runs\r\n").unwrap();
        tracker.on_event(0, now);
        let state = &tracker.nodes[&0];
        assert!(state.conn.is_none());
        waits.push((state.not_before - now) / MS);
    }
    assert_eq!(waits, [20, 40, 80, 160]);
    let now = clock::now();
    let mut far = connect(&mut tracker, 0, now);
    tracker.conn(0).unwrap().beat(&[], now);
    far.write_all(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n")
        .unwrap();
    tracker.on_event(0, now);
    assert_eq!(tracker.nodes[&0].backoff, 0);
}

#[test]
fn a_command_that_is_refused_is_not_asked_again_soon_and_told_until_a_heartbeat_is_good() {
    let (engine, mut tracker) = tracker(Topology::standalone(), &Arc::default());
    let now = clock::now();
    let mut far = connect(&mut tracker, 0, now);
    ask_for(&mut tracker, 0, b"k", now);
    far.write_all(b"-NOPERM User u has no permissions to run the 'pttl' command\r\n")
        .unwrap();
    tracker.on_event(0, now);
    assert_eq!(tracker.nodes[&0].not_before, now + REFUSED_FOR);
    let is_told = || engine.shared().refusals() != [""; 0];
    assert!(engine.shared().refusals()[0].contains("PTTL was refused"));
    let mut far = connect(&mut tracker, 0, now);
    assert!(is_told(), "opening alone has shown nothing");
    tracker.conn(0).unwrap().beat(&[], now);
    far.write_all(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n")
        .unwrap();
    tracker.on_event(0, now);
    assert!(!is_told());
}

#[test]
fn a_key_that_moved_costs_no_connection() {
    for error in [
        "MOVED 1 h:2",
        "ASK 1 h:2",
        "NOPERM No permissions to access a key",
    ] {
        let (engine, mut tracker) = tracker(two_nodes(), &Arc::default());
        let now = clock::now();
        let mut far = connect(&mut tracker, 0, now);
        let refused = ask_for(&mut tracker, 0, b"moved", now);
        let kept = ask_for(&mut tracker, 0, b"kept", now);
        write!(far, "-{error}\r\n:-1\r\n").unwrap();
        tracker.on_event(0, now);
        assert!(tracker.nodes[&0].conn.is_some(), "{error}");
        assert!(!is_registered(&tracker, &refused) && is_registered(&tracker, &kept));
        assert_eq!(engine.shared().refusals(), [""; 0]);
    }
}

#[test]
fn a_slot_that_moved_is_forgotten_and_the_others_are_proved() {
    let (_engine, mut tracker) = tracker(two_nodes(), &Arc::default());
    let now = clock::now();
    let mut far = connect(&mut tracker, 0, now);
    let keys: [&[u8]; 3] = [b"{a}1", b"{a}2", b"{b}1"];
    let tokens = keys.map(|key| ask_for(&mut tracker, 0, key, now));
    far.write_all(b":-1\r\n:-1\r\n:-1\r\n").unwrap();
    tracker.on_event(0, now);
    assert!(tokens.iter().all(|token| is_registered(&tracker, token)));
    assert_ne!(slot(keys[0]), slot(keys[2]));
    let probes = [keys[0].into(), keys[2].into()];
    tracker.conn(0).unwrap().beat(&probes, now);
    far.write_all(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n-MOVED 1 h:2\r\n:1\r\n")
        .unwrap();
    tracker.on_event(0, now);
    let left = tokens.map(|token| is_registered(&tracker, &token));
    assert_eq!(left, [false, false, true]);
    let cached = lock(&tracker.shared.cached);
    assert!(cached.cache.is_proved(SourceId(0), now));
}

#[test]
fn a_cluster_without_exists_is_left_alone() {
    let (engine, mut tracker) = tracker(two_nodes(), &Arc::default());
    let now = clock::now();
    let mut far = connect(&mut tracker, 0, now);
    tracker.conn(0).unwrap().beat(&[b"k"[..].into()], now);
    far.write_all(b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n")
        .unwrap();
    far.write_all(b"-NOPERM User u has no permissions to run the 'exists' command\r\n")
        .unwrap();
    tracker.on_event(0, now);
    assert_eq!(tracker.nodes[&0].not_before, now + REFUSED_FOR);
    assert!(engine.shared().refusals()[0].contains("'exists'"));
}

#[test]
fn a_registration_that_is_not_sent_is_asked_again() {
    let (_engine, mut tracker) = tracker(Topology::standalone(), &Arc::default());
    let now = clock::now();
    let _far = connect(&mut tracker, 0, now);
    let conn = tracker.conn(0).unwrap();
    while conn.ask_census(now) {}
    ask_for(&mut tracker, 0, b"k", now);
    ask_for(&mut tracker, 0, b"k", now); // that the cache wants it asked is what this asserts
}

#[test]
fn an_attempt_that_dies_is_followed_by_another() {
    let bad = Arc::new(Bad {
        is_panicking: true,
        ..Bad::default()
    });
    let connector: Arc<dyn Connector> = Arc::clone(&bad) as _;
    let (settings, topology) = (Settings::default(), Topology::standalone());
    let engine = Engine::<u32>::start(settings, topology, connector, &Writes::new(1)).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    while bad.dialled.load(Relaxed) < 2 {
        assert!(Instant::now() < until, "it was not tried again");
        engine.shared().tell(Message::Want { node: 0 });
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(engine.shared().refusals(), ["the attempt to connect died"]);
    while engine.shared().dialling.load(Relaxed) > 0 {
        assert!(Instant::now() < until, "it counts as under way");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_attempt_that_hangs_is_told() {
    let bad = Arc::<Bad>::default();
    let hang = lock(&bad.gate);
    let (engine, mut tracker) = tracker(Topology::standalone(), &bad);
    let now = clock::now();
    tracker.open(0, now);
    let slow = now + tracker.slow_dial();
    tracker.tell_slow_dials(slow - 1);
    assert_eq!(engine.shared().refusals(), [""; 0]);
    tracker.tell_slow_dials(slow);
    assert!(engine.shared().refusals()[0].contains("takes longer"));
    drop(hang);
}

#[test]
fn a_node_that_left_is_told_of_no_more() {
    let (engine, mut tracker) = tracker(two_nodes(), &Arc::default());
    let now = clock::now();
    let gone = Refusal::Unreachable("gone".into());
    tracker.lose(0, &gone, now);
    tracker.lose(1, &gone, now);
    assert_eq!(engine.shared().refusals().len(), 2);
    let mut topology = two_nodes();
    topology.set_owner(0, 16_383, &node(1));
    engine.shared().topology.store(Arc::new(topology));
    tracker.on_message(Message::Topology, now);
    assert_eq!(engine.shared().refusals(), ["h:1: gone"]);
    tracker.lose(1, &gone, now);
    assert_eq!(engine.shared().refusals(), ["h:1: gone"]);
}

#[test]
fn many_clients_widen_the_bound_up_to_a_limit() {
    let settings = Settings::default();
    let bound = |clients| pace(&settings, clients).map(|pace| pace.bound);
    assert_eq!(bound(0), Some(100 * MS));
    assert_eq!(bound(1_000), Some(1_875 * MS));
    assert_eq!(bound(5_333), Some(9_999_375_000));
    assert_eq!(bound(5_334), None);
    assert_eq!(bound(u32::MAX), None);
    let narrow = Settings {
        may_widen: false,
        ..Settings::default()
    };
    let pace = pace(&narrow, u32::MAX).unwrap();
    assert_eq!((pace.interval, pace.bound), (25 * MS, 100 * MS));
}

#[test]
fn a_crowded_node_is_cached_from_no_more_until_clients_leave() {
    let (engine, mut tracker) = tracker(Topology::standalone(), &Arc::default());
    let now = clock::now();
    let mut far = connect(&mut tracker, 0, now);
    let mut say = |tracker: &mut Tracker<u32>, clients: &str| {
        let info = format!("tracking_clients:{clients}\r\n");
        assert!(tracker.conn(0).unwrap().ask_census(now));
        write!(far, "${}\r\n{info}\r\n", info.len()).unwrap();
        tracker.on_event(0, now);
    };
    let is_up = || lock(&engine.shared().cached).cache.is_up(SourceId(0));
    say(&mut tracker, "18446744073709551615"); // no such number
    assert!(is_up());
    say(&mut tracker, "4000000000");
    assert!(!is_up());
    assert!(tracker.nodes[&0].conn.is_some());
    assert!(engine.shared().refusals()[0].contains("4000000000 clients"));
    assert_eq!(engine.shared().bound(), Duration::from_millis(100));
    say(&mut tracker, "1000");
    assert!(is_up());
    assert_eq!(engine.shared().refusals(), [""; 0]);
    assert_eq!(engine.shared().bound(), Duration::from_millis(1_875));
}
