//! Opening a tracking connection: the language's own client opens and authenticates it, since only it
//! knows how (Unix socket, credential provider, Sentinel); from then on it belongs to the tracker. Over TLS
//! it only connects, as its session could not be handed on: then TLS and login are ours.
//!
//! All of this blocks, so each attempt has a short-lived thread.
//!
//! The socket has neither keepalive nor `TCP_USER_TIMEOUT` of ours: whatever is asked on it must be answered
//! within the time after which the tracker opens it anew, and while nothing is asked nothing is served from it.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use keyheat_net::tls;
use keyheat_resp::reply::{parse, Value};
use keyheat_resp::tracking::{is_primary, trouble, Trouble};
use keyheat_resp::{encode, Limits};

use crate::topology::Node;

/// The name tracking connections have in the server's `CLIENT LIST`.
pub const CONNECTION_NAME: &[u8] = b"keyheat-tracking";

/// A stream of bytes with a descriptor that can be waited on.
pub trait Wire: Read + Write + Send {
    /// The descriptor.
    fn fd(&self) -> RawFd;
    /// Makes reads and writes return instead of waiting, or wait at most so long.
    ///
    /// # Errors
    /// The system refuses.
    fn set_waiting(&self, timeout: Option<Duration>) -> std::io::Result<()>;
}

/// A connection.
pub enum Dialed {
    /// A plain socket, TCP or Unix, authenticated.
    Fd(OwnedFd),
    /// Anything else, and nobody has logged in yet.
    Fresh(Box<dyn Wire>, Login),
}

/// What is left to say on a connection that nobody has spoken on. Not to be shown to anybody.
#[derive(Default)]
pub struct Login {
    /// User and password.
    pub credentials: Option<(Vec<u8>, Vec<u8>)>,
    /// The database.
    pub database: u32,
}

/// Why there is no tracking connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody answers, or the connection broke: try again.
    Unreachable(String),
    /// The server, or its rules, say no: trying again soon will not help.
    Refused(String),
}

impl Refusal {
    /// What happened.
    pub fn why(&self) -> &str {
        match self {
            Self::Unreachable(why) | Self::Refused(why) => why,
        }
    }
}

/// Opens connections. Called on a thread of its own, and may block.
pub trait Connector: Send + Sync + 'static {
    /// Opens one to `node`, authenticated or with what that takes.
    ///
    /// # Errors
    /// Why there is none.
    fn dial(&self, node: &Node, timeout: Duration) -> Result<Dialed, Refusal>;
}

/// What a new tracking connection is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The server process: its `run_id`, empty where the server does not tell.
    pub process: String,
    /// Whether fields of a hash can expire on their own there.
    pub has_field_expiry: bool,
    /// Which kind of server, and its version.
    pub server: String,
}

/// A tracking connection ready for the tracker.
pub struct Ready {
    /// The stream, no longer blocking.
    pub wire: Box<dyn Wire>,
    /// Its other end.
    pub peer: Peer,
    /// What arrived already.
    pub rest: Vec<u8>,
}

impl Wire for std::net::TcpStream {
    fn fd(&self) -> RawFd {
        self.as_raw_fd()
    }

    fn set_waiting(&self, timeout: Option<Duration>) -> std::io::Result<()> {
        self.set_nonblocking(timeout.is_none())?;
        self.set_read_timeout(timeout)?;
        self.set_write_timeout(timeout)
    }
}

impl Wire for tls::Stream {
    fn fd(&self) -> RawFd {
        self.as_raw_fd()
    }

    fn set_waiting(&self, timeout: Option<Duration>) -> std::io::Result<()> {
        self.socket().set_waiting(timeout)
    }
}

/// Opens a connection and switches tracking on.
pub(crate) fn open(
    connector: &dyn Connector,
    node: &Node,
    timeout: Duration,
) -> Result<Ready, Refusal> {
    let (wire, login): (Box<dyn Wire>, _) = match connector.dial(node, timeout)? {
        // Reading and writing a socket is the same for every family.
        Dialed::Fd(fd) => (Box::new(std::net::TcpStream::from(fd)), Login::default()),
        Dialed::Fresh(wire, login) => (wire, login),
    };
    wire.set_waiting(Some(timeout)).map_err(broken)?;
    let mut talk = Talk {
        wire,
        inbox: Vec::new(),
        until: Instant::now() + timeout,
    };
    let peer = talk.introduce(&login)?;
    talk.wire.set_waiting(None).map_err(broken)?;
    Ok(Ready {
        wire: talk.wire,
        peer,
        rest: talk.inbox,
    })
}

/// A blocking conversation.
struct Talk {
    wire: Box<dyn Wire>,
    inbox: Vec<u8>,
    until: Instant,
}

impl Talk {
    fn introduce(&mut self, login: &Login) -> Result<Peer, Refusal> {
        let hello = match &login.credentials {
            Some((user, password)) => self.log_in(user, password)?,
            None => self.must(&[b"HELLO", b"3"], "RESP3 (HELLO 3)")?,
        };
        if login.database != 0 {
            let database = login.database.to_string();
            self.must(&[b"SELECT", database.as_bytes()], "SELECT")?;
        }
        let _ = self.ask(&[b"CLIENT", b"SETNAME", CONNECTION_NAME])?;
        self.must(&[b"CLIENT", b"TRACKING", b"ON"], "CLIENT TRACKING")?;
        let role = self.must(&[b"ROLE"], "ROLE")?;
        if !is_primary(&role) {
            let why = "the node is not a primary, and only primaries push invalidations in time";
            return Err(Refusal::Refused(why.into()));
        }
        // Without the run_id nobody could tell whether a value comes from this very process.
        let info = match self.must(&[b"INFO", b"server"], "INFO server")? {
            Value::Bulk(text) | Value::Verbatim { text, .. } => text,
            _ => Vec::new(),
        };
        let commands = self.ask(&[b"COMMAND", b"INFO", b"hpttl"])?;
        let has_field_expiry = match &commands {
            Value::Array(list) => matches!(list.first(), Some(Value::Array(a)) if !a.is_empty()),
            _ => true, // not allowed to ask: the careful answer
        };
        Ok(Peer {
            process: info_field(&info, b"run_id").unwrap_or_default(),
            has_field_expiry,
            server: format!(
                "{} {}",
                field(&hello, b"server").unwrap_or_default(),
                field(&hello, b"version").unwrap_or_default()
            ),
        })
    }

    /// As `HELLO`, of whose errors only the code is told: a server that does not know the command
    /// repeats what it was sent.
    fn log_in(&mut self, user: &[u8], password: &[u8]) -> Result<Value, Refusal> {
        match self.ask(&[b"HELLO", b"3", b"AUTH", user, password])? {
            Value::Error(why) => {
                let code = why.split(|byte| *byte == b' ').next().unwrap_or_default();
                Err(refused("RESP3 (HELLO 3 AUTH)", code))
            }
            value => Ok(value),
        }
    }

    /// Asks for what tracking cannot do without.
    fn must(&mut self, args: &[&[u8]], what: &str) -> Result<Value, Refusal> {
        match self.ask(args)? {
            Value::Error(why) => Err(refused(what, &why)),
            value => Ok(value),
        }
    }

    fn ask(&mut self, args: &[&[u8]]) -> Result<Value, Refusal> {
        let mut request = Vec::new();
        encode::command(&mut request, args);
        self.wire.write_all(&request).map_err(broken)?;
        self.wire.flush().map_err(broken)?;
        loop {
            let limits = Limits::default();
            match parse(&self.inbox, &limits) {
                Ok(Some((value, len))) => {
                    self.inbox.drain(..len);
                    // Nothing is registered yet, so a push here says nothing we need.
                    if !matches!(value, Value::Push(_)) {
                        return Ok(value);
                    }
                }
                Ok(None) => self.read_more()?,
                Err(e) => return Err(Refusal::Refused(format!("no RESP is spoken there: {e}"))),
            }
        }
    }

    fn read_more(&mut self) -> Result<(), Refusal> {
        let mut piece = [0; 4096];
        if Instant::now() >= self.until {
            return Err(Refusal::Unreachable("no answer in time".into()));
        }
        match self.wire.read(&mut piece) {
            Ok(0) => Err(Refusal::Unreachable("the server hung up".into())),
            Ok(n) => {
                self.inbox
                    .extend_from_slice(piece.get(..n).unwrap_or_default());
                Ok(())
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => Ok(()),
            Err(e) => Err(broken(e)),
        }
    }
}

fn broken(error: std::io::Error) -> Refusal {
    match error.kind() {
        // In TLS 1.3 a server says only now that it does not like who connects.
        std::io::ErrorKind::InvalidData => Refusal::Refused(format!("TLS: {error}")),
        _ => Refusal::Unreachable(error.to_string()),
    }
}

/// An error of the server's.
pub(crate) fn refused(what: &str, why: &[u8]) -> Refusal {
    let text = format!("{what}: {}", String::from_utf8_lossy(why));
    match trouble(why) {
        Trouble::Passing => Refusal::Unreachable(text),
        Trouble::Key | Trouble::Refused => Refusal::Refused(text),
    }
}

/// A text field of `HELLO`'s reply.
fn field(hello: &Value, name: &[u8]) -> Option<String> {
    let Value::Map(pairs) = hello else {
        return None;
    };
    let found = pairs
        .iter()
        .find(|(key, _)| matches!(key, Value::Bulk(key) if key == name))?;
    match &found.1 {
        Value::Bulk(text) => Some(String::from_utf8_lossy(text).into_owned()),
        _ => None,
    }
}

/// The value of `name:value` in what `INFO` says.
pub(crate) fn info_field(info: &[u8], name: &[u8]) -> Option<String> {
    let of_line = |line: &[u8]| {
        let value = line.strip_prefix(name)?.strip_prefix(b":")?;
        let text = String::from_utf8_lossy(value).trim().to_owned();
        Some(text)
    };
    info.split(|byte| *byte == b'\n').find_map(of_line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_of_info_is_found_whole() {
        let info = b"# Server\r\nrun_id:abc\r\nrun_id_other:x\r\ntracking_clients:12\r\n";
        assert_eq!(info_field(info, b"run_id").as_deref(), Some("abc"));
        assert_eq!(info_field(info, b"tracking_clients").as_deref(), Some("12"));
        assert_eq!(info_field(info, b"nothing"), None);
    }
}
