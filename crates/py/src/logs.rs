//! The log: one line per event on standard error, for people or for machines, with a level that may change.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering::Relaxed};
use std::sync::Once;

use keyheat_proxy::settings::LogFormat;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::subscriber::Interest;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};

/// 1 (error) to 4 (debug).
static LEVEL: AtomicU8 = AtomicU8::new(3);

static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Has the process log from this level on, in this format; said again, both change.
pub fn set_up(level: &str, format: LogFormat) {
    static ONCE: Once = Once::new();
    let level = match level {
        "error" => 1,
        "warn" => 2,
        "debug" => 4,
        _ => 3,
    };
    LEVEL.store(level, Relaxed);
    IS_JSON.store(format == LogFormat::Json, Relaxed);
    ONCE.call_once(|| {
        let lines = tracing_subscriber::registry().with(Lines);
        // Somebody else's log is theirs.
        let _ = tracing::subscriber::set_global_default(lines);
    });
}

fn rank(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        // Asked each time: the level may change. What is finer than debug is never shown.
        if rank(metadata.level()) > 4 {
            return Interest::never();
        }
        Interest::sometimes()
    }

    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        rank(metadata.level()) <= LEVEL.load(Relaxed)
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let level = event.metadata().level();
        let mut line = if IS_JSON.load(Relaxed) {
            json(level, fields)
        } else {
            text(level, &fields)
        };
        line.push('\n');
        // In one go, so that lines of several threads do not mix.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }
}

fn time() -> String {
    let mut text = String::new();
    let _ = SystemTime.format_time(&mut Writer::new(&mut text));
    text
}

/// `time`, `level` and `message`, and what else there is to say beside them.
fn json(level: &Level, fields: Fields) -> String {
    let mut whole = fields.others;
    whole.insert("time".into(), time().into());
    whole.insert("level".into(), level.to_string().to_lowercase().into());
    whole.insert("message".into(), fields.message.into());
    Value::Object(whole).to_string()
}

fn text(level: &Level, fields: &Fields) -> String {
    let mut line = format!("{} {level:>5} ", time());
    plain(&mut line, &fields.message);
    for (name, value) in &fields.others {
        let _ = write!(line, " {name}=");
        match value {
            Value::String(text) => plain(&mut line, text),
            other => {
                let _ = write!(line, "{other}");
            }
        }
    }
    line
}

/// What servers and clients have said may stand in a line, but not begin another one.
fn plain(line: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_control() {
            line.extend(c.escape_default());
        } else {
            line.push(c);
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn take(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("message", Value::String(text)) => self.message = text,
            (name, value) => {
                self.others.insert(name.to_owned(), value);
            }
        }
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, value.into());
    }
}
