//! A blocking connection to a server, for the little that is asked of the topology.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyheat_net::tls;
use keyheat_resp::reply::{parse, Value};
use keyheat_resp::{encode, Limits};

use super::{host_of, resolve, text};
use crate::notice::{Notice, OwnTalk};
use crate::settings::Settings;

/// What a connection is made of.
enum Wire {
    Plain(TcpStream),
    Tls(Box<tls::Stream>),
}

impl Wire {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.socket(),
        }
    }

    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buf),
            Self::Tls(stream) => stream.read(buf),
        }
    }

    fn write_all(&mut self, buf: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Plain(stream) => stream.write_all(buf),
            Self::Tls(stream) => stream.write_all(buf).and_then(|()| stream.flush()),
        }
    }
}

/// A blocking connection with a limit on every step, for the little that control asks.
pub(crate) struct Connection {
    stream: Wire,
    buf: Vec<u8>,
    timeout: Duration,
    /// `MONITOR` does not show what is asked.
    talk: Option<OwnTalk>,
}

impl Connection {
    /// A connection to a server, with the account it is to be used with.
    ///
    /// Args: `address` as `host:port`.
    pub fn to(
        address: &str,
        settings: &Settings,
        tls: Option<&tls::Client>,
        patience: Duration,
    ) -> Result<Self, String> {
        let timeout = Duration::from_millis(settings.connect_timeout_ms).min(patience);
        let mut conn = Self::open(address, timeout, tls)?;
        let up = &settings.upstream;
        conn.authenticate(up.username.as_deref(), up.password.as_deref())?;
        Ok(conn)
    }

    /// Args: `address` as `host:port`.
    pub fn open(
        address: &str,
        timeout: Duration,
        tls: Option<&tls::Client>,
    ) -> Result<Self, String> {
        let socket = TcpStream::connect_timeout(&resolve(address)?, timeout);
        let socket = socket.map_err(|e| e.to_string())?;
        socket.set_nodelay(true).map_err(|e| e.to_string())?;
        let stream = match tls {
            None => Wire::Plain(socket),
            Some(tls) => {
                let stream = tls.connect(socket, host_of(address), timeout);
                Wire::Tls(Box::new(stream.map_err(|e| match e {
                    tls::Failure::Broken(why) | tls::Failure::Refused(why) => why,
                })?))
            }
        };
        let socket = stream.socket();
        let set = |r: std::io::Result<()>| r.map_err(|e| e.to_string());
        set(socket.set_read_timeout(Some(timeout)))?;
        set(socket.set_write_timeout(Some(timeout)))?;
        Ok(Self {
            stream,
            buf: Vec::new(),
            timeout,
            talk: None,
        })
    }

    /// What is asked from now on is asked by the proxy for itself.
    pub fn talk(&mut self, notice: &Arc<Notice>) {
        let address = self.stream.socket().local_addr().ok();
        self.talk = address.map(|address| notice.talk(address));
    }

    pub fn call(&mut self, args: &[&[u8]]) -> Result<Value, String> {
        let mut out = Vec::new();
        encode::command(&mut out, args);
        self.stream.write_all(&out).map_err(|e| e.to_string())?;
        let limits = Limits::default();
        let until = Instant::now() + self.timeout;
        let mut chunk = [0u8; 16 * 1024];
        loop {
            match parse(&self.buf, &limits) {
                Ok(Some((value, used))) => {
                    self.buf.drain(..used);
                    return Ok(value);
                }
                Ok(None) => {}
                Err(_) => return Err("does not answer like a Redis or Valkey server".into()),
            }
            if Instant::now() >= until || self.buf.len() > 16 << 20 {
                return Err("did not answer in time".into());
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err("closed the connection".into()),
                Ok(n) => self.buf.extend_from_slice(&chunk[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    return Err("did not answer in time".into())
                }
                Err(e) => return Err(e.to_string()),
            }
        }
    }

    /// Says who asks, where the account has a password.
    pub fn authenticate(
        &mut self,
        user: Option<&str>,
        password: Option<&str>,
    ) -> Result<(), String> {
        let Some(password) = password else {
            return Ok(());
        };
        let password = password.as_bytes();
        let reply = match user {
            Some(user) => self.call(&[b"AUTH", user.as_bytes(), password])?,
            None => self.call(&[b"AUTH", password])?,
        };
        match reply {
            Value::Error(e) => Err(format!("refused AUTH: {}", text(&e))),
            _ => Ok(()),
        }
    }
}
